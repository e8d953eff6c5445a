from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.errors import DataError
from firstorder.core.method.aggregation import normaliser
from firstorder.core.method.ratio import BOUND
from firstorder.core.method.recipe import Aggregation, Recipe
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.surrogate import RECEIPTS, receipts, surrogate_loss, token_weights
from firstorder.core.settings import toml

RECIPES = {name: toml.build(Recipe, toml.read(name)) for name in toml.shipped()}
EVERY = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
PER_TOKEN = ("logp_theta", "logp_old", "logp_mu", "kl_mu", "router_shift")


def gradient(stats, recipe):
    leaf = stats.logp_theta.clone().requires_grad_()
    live = replace(stats, logp_theta=leaf)
    surrogate_loss(live, token_weights(live, recipe).weight).backward()
    return leaf.grad


@EVERY
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
def test_a_larger_advantage_scales_every_weight(make_stats, same, recipe, seed, scale):
    stats = make_stats(seed)
    scaled = stats.with_advantage(scale * stats.advantage)
    same(token_weights(scaled, recipe).weight, scale * token_weights(stats, recipe).weight)


@EVERY
def test_tokens_off_the_mask_never_influence_a_weight_or_a_gradient(make_stats, recipe):
    stats = make_stats()
    other = make_stats(99)
    changed = replace(
        stats, **{n: torch.where(stats.mask, getattr(stats, n), getattr(other, n) - 3.0) for n in PER_TOKEN}
    )
    weight = token_weights(stats, recipe).weight
    assert torch.equal(token_weights(changed, recipe).weight, weight)
    assert (weight[~stats.mask] == 0).all()
    assert torch.equal(gradient(changed, recipe), gradient(stats, recipe))
    assert (gradient(changed, recipe)[~stats.mask] == 0).all()


@EVERY
def test_not_a_number_off_the_mask_stays_there(make_stats, recipe):
    stats = make_stats()
    broken = replace(stats, **{n: torch.where(stats.mask, getattr(stats, n), torch.nan) for n in PER_TOKEN})
    assert torch.equal(token_weights(broken, recipe).weight, token_weights(stats, recipe).weight)
    assert torch.equal(gradient(broken, recipe), gradient(stats, recipe))


@EVERY
@pytest.mark.parametrize("seed", range(4))
def test_a_measure_counts_like_repeated_responses(make_stats, same, recipe, seed):
    counts = torch.tensor([1, 2, 3, 1, 5, 4])
    exhaustive = replace(make_stats(seed), measure=counts.double() / 16)
    sampled = replace(
        exhaustive,
        **{
            n: getattr(exhaustive, n).repeat_interleave(counts, 0) for n in (*PER_TOKEN, "mask", "advantage", "rewards")
        },
        measure=None,
    )
    weight = token_weights(exhaustive, recipe).weight
    same(token_weights(sampled, recipe).weight, weight.repeat_interleave(counts, 0))
    summed = torch.zeros_like(weight).index_add(0, torch.arange(6).repeat_interleave(counts), gradient(sampled, recipe))
    same(summed, gradient(exhaustive, recipe))


@EVERY
def test_a_weight_is_the_product_of_its_reported_factors(make_stats, same, recipe):
    stats = make_stats()
    parts = token_weights(stats, recipe)
    product = stats.advantage[:, None] * parts.clipped * parts.correction * parts.kept / parts.norm
    same(parts.weight[stats.mask], product.expand_as(parts.weight)[stats.mask])
    assert not any(getattr(parts, name).requires_grad for name in vars(parts))


@pytest.mark.parametrize("name", ["minirl", "gspo", "dapo", "m2po", "ctpo", "gmpo", "vespo", "nfpo"])
def test_an_ensemble_is_its_members(make_stats, same, name):
    members = [make_stats(seed) for seed in (1, 2)]
    fields = (*PER_TOKEN, "mask", "advantage", "rewards")
    stack = replace(members[0], **{n: torch.stack([getattr(m, n) for m in members]) for n in fields})
    weight = token_weights(stack, RECIPES[name]).weight
    loss = surrogate_loss(stack, weight)
    for i, member in enumerate(members):
        alone = token_weights(member, RECIPES[name]).weight
        same(weight[i], alone)
        same(loss[i], surrogate_loss(member, alone))


def test_each_aggregation_divides_by_what_it_names(make_stats, same):
    stats = make_stats()
    lengths = stats.mask.sum(-1).double()

    def norm(**rule):
        return normaliser(stats, Aggregation(**rule)).expand(6, 1).flatten()

    same(norm(kind="token_sum"), torch.ones(6))
    same(norm(kind="length", alpha=0.5), lengths.sqrt())
    same(norm(kind="token_mean"), lengths.mean().expand(6))
    same(norm(kind="constant", constant=7.0), torch.full((6,), 7.0))


def test_the_gradient_of_the_loss_is_minus_the_mean_of_the_weights(make_stats, same):
    stats = make_stats()
    weight = token_weights(stats, RECIPES["minirl"]).weight
    same(gradient(stats, RECIPES["minirl"]), -weight / 6)


def test_minirl_without_a_bound_is_the_token_objective(make_stats, same):
    stats = make_stats()
    expected = stats.advantage[:, None] * (stats.logp_theta - stats.logp_mu).exp()
    same(token_weights(stats, RECIPES["minirl-no-clip"]).weight[stats.mask], expected[stats.mask])
    assert torch.equal(
        token_weights(stats, RECIPES["keep-routing"]).weight,
        token_weights(stats, RECIPES["minirl-r3"]).weight,
    )


def counted(stats, recipe):
    found = receipts(stats, token_weights(stats, recipe), recipe)
    assert set(found) == set(RECEIPTS)
    return {name: (int(n), int(of)) for name, (n, of) in found.items()}


def test_receipts_count_the_tokens_that_each_part_changed(make_stats):
    stats = make_stats(2, size=12, spread=0.6)
    found = counted(stats, RECIPES["tis"])
    r, k = (stats.logp_theta - stats.logp_old).exp(), (stats.logp_old - stats.logp_mu).exp()
    up = (r > 1.28) & (stats.advantage[:, None] > 0) & stats.mask
    down = (r < 0.8) & (stats.advantage[:, None] < 0) & stats.mask
    tokens = int(stats.mask.sum())
    assert found == {
        "clip_upper": (int(up.sum()), tokens),
        "clip_lower": (int(down.sum()), tokens),
        "truncated": (int(((k > 2.0) & stats.mask).sum()), tokens),
        "masked": (0, tokens),
        "corrected": (int(((k.clamp(max=2.0) != 1) & stats.mask).sum()), tokens),
        "ratio_not_one": (tokens, tokens),
        "saturated": (0, tokens),
    }
    assert all(found[part][0] > 0 for part in ("clip_upper", "clip_lower", "truncated"))


def test_receipts_tell_what_a_mask_drops_from_what_it_reweighs(make_stats):
    stats = make_stats(2, size=12, spread=0.6)
    found = counted(stats, RECIPES["icepop"])
    k = (stats.logp_old - stats.logp_mu).exp()
    dropped = ((k < 0.5) | (k > 5.0)) & stats.mask
    assert found["masked"] == (int(dropped.sum()), int(stats.mask.sum()))
    assert 0 < found["masked"][0] < found["corrected"][0]
    assert found["truncated"][0] == 0


def test_a_factor_that_equals_the_bound_of_a_mask_is_not_truncated(make_stats):
    rule = {"kind": "ratio", "over": "sum", "low": 0.0, "high": 1.0}
    recipe = Recipe.model_validate({"rejection": rule})
    found = counted(make_stats(), recipe)
    assert 0 < found["masked"][0] < found["masked"][1]
    assert found["truncated"][0] == 0


def test_both_bounds_of_a_truncation_count_and_a_ratio_of_0_without_a_lower_one_does_not(make_stats):
    stats = make_stats(2, size=12, spread=0.6)
    nothing = stats.logp_old.clone()
    nothing[1, 1] = -torch.inf
    stats = replace(stats, logp_old=nothing)
    k = (stats.logp_old - stats.logp_mu).exp()[stats.mask]
    for low, beyond in ((0.0, k > 1.2), (0.8, (k > 1.2) | (k < 0.8))):
        rule = {"kind": "truncate", "low": low, "high": 1.2}
        assert counted(stats, Recipe.model_validate({"correction": rule}))["truncated"][0] == int(beyond.sum())


@pytest.mark.parametrize("span", ["sequence", "geometric"])
def test_a_truncated_response_counts_once_whatever_its_length(make_stats, span):
    # verl's rollout_is_ratio_fraction_high is a mean over responses at rollout_is = sequence
    rule = {"kind": "truncate", "span": span, "high": 1.1}
    stats = make_stats(2, size=12, spread=0.6)
    stats = replace(stats, mask=stats.mask & (torch.arange(12) > 0)[:, None])  # the first has no token
    total = torch.where(stats.mask, stats.logp_old - stats.logp_mu, 0.0).sum(-1)
    k = (total if span == "sequence" else total / stats.lengths).exp()
    found = counted(stats, Recipe.model_validate({"correction": rule}))
    assert found["truncated"] == (int((k > 1.1).sum()), 11)
    assert 0 < found["truncated"][0] < 11
    assert found["corrected"][1] == int(stats.mask.sum())


def test_a_share_of_truncated_tokens_is_a_mean_over_tokens(make_stats):
    stats = make_stats(2, size=12, spread=0.6)
    found = counted(stats, Recipe.model_validate({"correction": {"kind": "truncate", "high": 1.1}}))
    k = (stats.logp_old - stats.logp_mu).exp()
    assert found["truncated"] == (int(((k > 1.1) & stats.mask).sum()), int(stats.mask.sum()))


def test_a_clip_that_gives_a_response_one_ratio_is_told_by_the_tokens_it_drops(make_stats):
    stats = make_stats(2, size=12, spread=0.6)
    found = counted(stats, RECIPES["gmpo"])
    d = stats.logp_theta - stats.logp_old
    a = stats.advantage[:, None]
    assert found["clip_upper"][0] == int(((d > 0.4) & (a > 0) & stats.mask).sum()) > 0
    assert found["clip_lower"][0] == int(((d < -0.4) & (a < 0) & stats.mask).sum()) > 0


def test_a_router_that_stays_leaves_a_ratio_and_one_that_leaves_is_floored(make_stats, same):
    stats, rule = make_stats(), Recipe.model_validate({"ratio": {"router_floor": 0.8}})
    plain = token_weights(stats, Recipe()).ratio
    same(token_weights(replace(stats, router_shift=0 * stats.router_shift), rule).ratio, plain)
    far = replace(stats, router_shift=torch.full_like(stats.router_shift, 9.0))
    same(token_weights(far, rule).ratio[stats.mask], 0.8 * plain[stats.mask])
    factor = (-stats.router_shift).exp().clamp(min=0.8)
    same(token_weights(stats, rule).ratio[stats.mask], (plain * factor)[stats.mask])
    with pytest.raises(DataError, match=r"`ratio\.router_floor` needs `router_shift`"):
        token_weights(replace(stats, router_shift=None), rule)


def test_receipts_of_a_recipe_without_parts_are_zero(make_stats):
    stats = make_stats()
    assert not any(n for n, _ in counted(stats, RECIPES["reinforce"]).values())


METHODS = {
    recipe.model_copy(
        update={"about": Recipe().about, "schedule": Recipe().schedule, "optimizer": Recipe().optimizer}
    ): name
    for name, recipe in RECIPES.items()
}
EVERY_METHOD = pytest.mark.parametrize("recipe", METHODS, ids=METHODS.values())
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
ODD = torch.tensor([0.0, -1e-30, -1e-8, -0.7, -19.0, -21.0, -90.0, -800.0, -1e4, -torch.inf], dtype=torch.float64)
FAR = torch.tensor([0.0, 1e-8, 0.04, 30.0, 1e5, torch.inf], dtype=torch.float64)


def odd_batch(seed, size, length, filled, dtype):
    """Any log-probs, lengths, advantages and distances that a batch may hold, each at its extremes."""
    g = torch.Generator().manual_seed(seed)

    def drawn(values, *shape):
        return values[torch.randint(len(values), shape, generator=g)].to(dtype)

    return TokenStats(
        logp_theta=drawn(ODD, size, length),
        logp_old=drawn(ODD, size, length),
        logp_mu=drawn(ODD[:-1], size, length),
        mask=torch.rand(size, length, generator=g) < filled,
        advantage=drawn(torch.tensor([0.0, 1e-30, 1.0, -1.0, 1e6, -1e6]), size),
        kl_mu=drawn(FAR, size, length),
        router_shift=drawn(FAR, size, length),
    )


def outcome(stats, recipe):
    """The weights, the loss and its gradient by log π_θ."""
    leaf = stats.logp_theta.clone().requires_grad_()
    live = replace(stats, logp_theta=leaf)
    weight = token_weights(live, recipe).weight
    loss = surrogate_loss(live, weight)
    loss.backward()
    return weight, loss, leaf.grad


@EVERY_METHOD
@BOTH
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 4),
    length=st.sampled_from([1, 2, 9, 70]),
    filled=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
)
def test_any_batch_gives_finite_weights_a_finite_loss_and_a_finite_gradient(recipe, dtype, seed, size, length, filled):
    stats = odd_batch(seed, size, length, filled, dtype)
    found = outcome(stats, recipe)
    assert all(x.isfinite().all() and x.dtype is dtype for x in found)
    norm = token_weights(stats, recipe).norm
    assert ((found[0] * norm).abs() <= stats.advantage[:, None].abs() * BOUND * (1 + 1e-5)).all()
    counts = receipts(stats, token_weights(stats, recipe), recipe)
    assert all(0 <= above <= below == stats.mask.sum() for above, below in counts.values())


@EVERY_METHOD
@pytest.mark.parametrize("drift", [0.01, -0.01])
def test_32768_tokens_that_drift_one_way_give_the_same_finite_weights_in_both_dtypes(recipe, drift):
    noise = torch.randn(2, 32_768, generator=torch.Generator().manual_seed(0)).mul(1e-3)
    mu = torch.full((2, 32_768), -2.0)
    single = TokenStats(
        logp_theta=mu + drift + noise,
        logp_old=mu + drift / 2,
        logp_mu=mu,
        mask=torch.arange(32_768) < torch.tensor([[32_768], [700]]),
        advantage=torch.tensor([1.0, -1.0]),
        kl_mu=noise.abs(),
        router_shift=noise.abs(),
    )
    double = replace(single, **{n: x.double() for n, x in vars(single).items() if x is not None and n != "mask"})
    found, right = outcome(single, recipe), outcome(double, recipe)
    terms = (right[0] * double.logp_theta).abs().sum(-1).mean()  # of the loss, in which the two responses may cancel
    for one, other, scale in zip(found, right, (right[0].abs().max(), terms, right[2].abs().max()), strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=float(scale) * 1e-6)


def far_apart(**shifts):
    """A response of three tokens whose log-probs lie so many nats below -1."""
    logp = {name: torch.full((1, 3), -1.0 - shifts.get(name, 0.0)).double() for name in ("theta", "old", "mu")}
    return TokenStats(
        **{f"logp_{name}": x for name, x in logp.items()},
        mask=torch.ones(1, 3, dtype=torch.bool),
        advantage=torch.tensor([-2.0]).double(),
    )


@BOTH
def test_two_factors_at_their_bound_make_a_product_at_the_bound(dtype):
    recipe = Recipe.model_validate({"ratio": {"of": "theta/old"}, "correction": {"kind": "ratio", "of": "old/mu"}})
    stats = far_apart(old=90.0, mu=180.0)
    stats = replace(
        stats, **{n: getattr(stats, n).to(dtype) for n in ("logp_theta", "logp_old", "logp_mu", "advantage")}
    )
    weight, loss, _ = outcome(stats, recipe)
    bound = torch.tensor(BOUND, dtype=dtype)
    assert (weight == -2 * bound).all()
    assert loss == -6 * bound
    assert counted(stats, recipe)["saturated"] == (3, 3)


@pytest.mark.parametrize(
    ("parts", "shifts", "held"),
    [
        ({"ratio": {"of": "theta/mu"}}, {"mu": 21.0}, 3),
        ({"ratio": {"of": "theta/mu"}}, {"mu": 19.0}, 0),
        ({"ratio": {"of": "theta/mu", "span": "sequence"}}, {"mu": 7.0}, 3),
        ({"ratio": {"of": "theta/mu", "span": "prefix"}}, {"mu": 7.0}, 1),
        ({"ratio": {"of": "theta/mu", "span": "geometric"}}, {"mu": 7.0}, 0),
        ({"ratio": {"of": "none"}, "correction": {"kind": "ratio"}}, {"mu": 21.0}, 3),
        ({"ratio": {"of": "none"}, "correction": {"kind": "truncate", "high": 2.0}}, {"mu": 21.0}, 0),
        ({"ratio": {"of": "theta/old"}, "correction": {"kind": "ratio"}}, {"old": 11.0, "mu": 22.0}, 3),
        ({"ratio": {"of": "theta/old"}, "correction": {"kind": "ratio"}}, {"old": 9.0, "mu": 18.0}, 0),
        ({"ratio": {"of": "theta/mu"}}, {"theta": 800.0}, 0),
    ],
)
def test_tokens_held_at_the_bound_are_counted(parts, shifts, held):
    stats = far_apart(**shifts)
    recipe = Recipe.model_validate(parts)
    assert counted(stats, recipe)["saturated"] == (held, 3)
    if not held:
        made = token_weights(stats, recipe)
        assert torch.equal(made.weight, stats.advantage[:, None] * made.clipped * made.correction / made.norm)


@EVERY
@BOTH
def test_a_token_that_pi_cannot_choose_leaves_loss_and_gradient_finite(recipe, dtype):
    """Through the distribution itself: the logits that top-k has closed are -inf."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, generator=g, dtype=dtype).requires_grad_()
    shut = torch.zeros(2, 4, 5, dtype=torch.bool)
    shut[0, 1, 2] = True
    tokens = torch.full((2, 4, 1), 2)
    logp = logits.masked_fill(shut, -torch.inf).log_softmax(-1).gather(-1, tokens)[..., 0]
    open_logp = logits.detach().log_softmax(-1).gather(-1, tokens)[..., 0]
    stats = TokenStats(
        logp_theta=logp,
        logp_old=logp.detach(),
        logp_mu=open_logp,
        mask=torch.ones(2, 4, dtype=torch.bool),
        advantage=torch.tensor([1.0, -1.0], dtype=dtype),
        kl_mu=torch.zeros(2, 4, dtype=dtype),
        router_shift=torch.zeros(2, 4, dtype=dtype),
    )
    weight = token_weights(stats, recipe).weight
    loss = surrogate_loss(stats, weight)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert weight[0, 1] == 0
    assert (logits.grad[0, 1] == 0).all()
    assert (weight[1] != 0).any() or recipe.clip.kind == "second_moment"


@EVERY_METHOD
def test_a_batch_of_which_no_token_counts_has_the_loss_0(make_stats, recipe):
    stats = make_stats()
    weight, loss, gradient = outcome(replace(stats, mask=torch.zeros_like(stats.mask)), recipe)
    assert loss == 0
    assert (weight == 0).all()
    assert (gradient == 0).all()
