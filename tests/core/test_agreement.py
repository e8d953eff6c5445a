import math
import statistics

import pytest
import torch

from firstorder.core.quantities import add, means
from firstorder.core.routing import flips, margin
from firstorder.core.training import strata
from firstorder.core.training.agreement import THIN, agreement
from firstorder.core.training.batch import RolloutBatch


def batch_of(seed=0, size=5, length=7, layers=3, lead=()):
    """Rollouts with answers inside and padding behind, and routes of which some did not arrive."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(*lead, size, length, generator=g) < 0.6
    mask[..., 0], mask[..., -1], mask[..., 1] = False, False, True
    logp = -torch.rand(mask.shape, generator=g, dtype=torch.float64) - 0.1
    routes, live = (
        torch.rand(*mask.shape, layers, 4, generator=g).argsort(-1)[..., :2].sort(-1).values.short() for _ in range(2)
    )
    live = torch.where(torch.rand(*mask.shape, layers, 1, generator=g) < 0.7, routes, live)
    lost = torch.rand(*mask.shape, 1, 1, generator=g) < 0.1
    lost[..., -3, :, :] = False  # or the rows would look shifted by one
    lost[..., -2:, :, :] = True
    routes, live[..., -2:, :, :] = torch.where(lost, -1, routes), -1
    batch = RolloutBatch(
        tokens=torch.ones(mask.shape, dtype=torch.int64),
        mask=mask,
        lengths=torch.full(mask.shape[:-1], length - 1),
        logp_mu=torch.where(mask, logp, 0.0),
        rewards=torch.ones(mask.shape[:-1]),
        groups=torch.zeros(mask.shape[:-1], dtype=torch.int64),
        routes=routes,
    )
    gap = 0.05 * torch.rand(*mask.shape, layers, generator=g, dtype=torch.float64)
    used = torch.where(mask, 1.3 * logp, torch.nan)
    return batch, live, gap, used, torch.ones_like(used)


def slow(batch, live, gap, used):
    """`kl_flipped` and `route/thin_margin`, one token at a time."""
    kl, thin = [], []
    for b, t in batch.mask.nonzero().tolist():
        sent, own = batch.routes[b, t - 1].tolist(), live[b, t - 1].tolist()
        if any(set(x) != set(y) for x, y in zip(sent, own, strict=True) if min(x) >= 0):
            kl.append(float(batch.logp_mu[b, t]) - float(used[b, t]))
        thin += [float(x) < THIN for x in gap[b, t - 1]]
    return (statistics.fmean(kl) if kl else 0.0), statistics.fmean(thin)


def test_what_stands_off_the_mask_is_not_averaged():
    """A margin is infinite where every expert is chosen, and log-probs and an entropy are any number on a prompt."""
    routes = torch.tensor([[0, 1]]).expand(2, 4, 1, 2).clone()
    routes[:, 3:] = -1
    batch = RolloutBatch(
        tokens=torch.ones(2, 4, dtype=torch.int64),
        mask=torch.tensor([[False, False, True, True]] * 2),
        lengths=torch.tensor([4, 4]),
        logp_mu=torch.tensor([[0.0, 0.0, -1.0, -1.0]] * 2),
        rewards=torch.ones(2),
        groups=torch.zeros(2, dtype=torch.int64),
        routes=routes,
    )
    gap = torch.full((2, 4, 1), 0.25)
    gap[:, 0] = torch.inf
    entropy = torch.tensor([[torch.nan, torch.inf, 1.0, 2.0]] * 2)
    sums = agreement(batch, routes, gap, entropy - 2.0, entropy)
    found = means(sums)
    assert found["route/gate_margin"] == 0.25
    assert found["update/entropy"] == 1.5
    assert found["route/flip_rate"] == found["route/flip_rate_layer_0"] == found["route/thin_margin"] == 0
    assert strata.finalise(sums) == {"kl_flipped": 0.0}  # nothing flipped


@pytest.mark.parametrize("seed", range(4))
def test_the_kl_of_flipped_tokens_and_thin_margins_are_their_formulas(seed):
    batch, live, gap, used, entropy = batch_of(seed)
    sums = agreement(batch, live, gap, used, entropy)
    kl, thin = slow(batch, live, gap, used)
    assert kl > 0
    assert 0 < thin < 1
    assert float(strata.finalise(sums)["kl_flipped"]) == pytest.approx(kl, rel=1e-12)
    assert float(means(sums)["route/thin_margin"]) == pytest.approx(thin, rel=1e-12)
    assert sums["kl_flipped"][1] == sums["route/tokens_flipped"][0]


def test_members_have_their_own_and_parts_of_a_batch_add_up(same):
    whole = batch_of(lead=(2,))
    names = ("tokens", "mask", "lengths", "logp_mu", "rewards", "groups", "routes")

    def cut(*where):
        batch, *others = whole
        return RolloutBatch(**{name: getattr(batch, name)[where] for name in names}), *(x[where] for x in others)

    sums = agreement(*whole)
    for name in ("kl_flipped", "route/thin_margin"):
        for member in range(2):
            alone = agreement(*cut(member))
            parts = add(agreement(*cut(member, slice(2))), agreement(*cut(member, slice(2, 5))))
            for place in (0, 1):
                same(sums[name][place][member], alone[name][place])
                same(parts[name][place], alone[name][place])


def test_routers_that_cannot_flip_have_no_thin_margin():
    batch, live, gap, used, entropy = batch_of()
    never = margin(torch.rand(*gap.shape, 2), 2)
    assert means(agreement(batch, live, never, used, entropy))["route/thin_margin"] == 0


@pytest.mark.parametrize("s", [5e-4, 2e-3])
def test_thin_margins_forecast_the_flips_of_engines_whose_scores_differ_a_little(s):
    """Scores spread evenly have margins of an even density near 0, and flip at the rate f s / √π."""
    g = torch.Generator().manual_seed(0)
    mu = torch.rand(400_000, 4, generator=g, dtype=torch.float64)
    pi = mu + s * torch.randn(mu.shape, generator=g, dtype=torch.float64)
    flipped = flips(*(x.topk(2, dim=-1).indices for x in (pi, mu))).double()
    density = (margin(pi, 2) < THIN).double() / THIN
    error = float((flipped.var() / len(flipped)).sqrt() + s * (density.var() / len(density) / math.pi).sqrt())
    # margins get rarer by 1 - 3 m; what is left is of the second order in s and THIN
    assert float(flipped.mean()) == pytest.approx(
        float(density.mean()) * s / math.sqrt(math.pi), rel=0.03, abs=3 * error
    )
