import math
from dataclasses import replace
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.method.clip import bernoulli_kl, capped, clip
from firstorder.core.method.parts import CLIPS
from firstorder.core.method.ratio import ratio
from firstorder.core.method.recipe import Clip, Recipe
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.surrogate import surrogate_loss, token_weights
from firstorder.core.settings import toml

HIGH = {"tv": 0.02, "kl": 0.002}
OWN = {"dual": {"cap": 1.3}, "sapo": {"temperature": [1.5, 2.5]}}
SPAN = {kind: part.span or "token" for kind, part in CLIPS.items()}


def pushed_out(a, above, below):
    return (a > 0 and above) or (a < 0 and below)


def solved(squares, budget):
    """The cap on the squares that makes their mean the budget, by halving; infinite where none is needed."""
    if not squares or sum(squares) / len(squares) <= budget:
        return math.inf
    low, high = 0.0, max(squares)
    for _ in range(200):
        mid = (low + high) / 2
        low, high = (mid, high) if sum(min(v, mid) for v in squares) < budget * len(squares) else (low, mid)
    return high


def slow(stats, r, c):
    found = []
    logs = [[math.log(float(r[b, t])) for t in on.nonzero().flatten().tolist()] for b, on in enumerate(stats.mask)]
    pushed = [v * v for b, row in enumerate(logs) for v in row if pushed_out(float(stats.advantage[b]), v > 0, v < 0)]
    tau = math.sqrt(solved(pushed, c.budget))
    for b, t in stats.mask.nonzero().tolist():
        k, a = float(r[b, t]), float(stats.advantage[b])
        theta, old, mu = (float(x[b, t]) for x in (stats.logp_theta, stats.logp_old, stats.logp_mu))
        p, q = math.exp(theta), math.exp(mu)
        if c.kind == "cispo":
            k = min(max(k, 1 - c.low), 1 + c.high)
        elif c.kind == "minirl":
            moved = math.exp(theta - old)
            k *= not pushed_out(a, moved > 1 + c.high, moved < 1 - c.low)
        elif c.kind in ("ppo", "gspo"):
            k *= not pushed_out(a, k > 1 + c.high, k < 1 - c.low)
        elif c.kind == "dual":
            k *= not pushed_out(a, k > 1 + c.high, k < 1 - c.low or k > c.cap)
        elif c.kind == "sapo":
            k /= math.cosh(c.temperature[a <= 0] * (k - 1) / 2) ** 2
        elif c.kind == "m2po":
            k *= not pushed_out(a, k > max(1 + c.high, math.exp(tau)), k < min(1 - c.low, math.exp(-tau)))
        elif c.kind == "ctpo":
            root = math.sqrt(int(stats.mask[b, : t + 1].sum()))
            above, below = math.log(k) > c.high * root, math.log(k) < -c.low * root
            k *= not pushed_out(a, above, above or below)
        elif c.kind == "gmpo":
            held = [min(v, c.high) if a > 0 else max(v, -c.low) if a < 0 else v for v in logs[b]]
            own, k = math.log(k), math.exp(sum(held) / len(held))
            k *= not pushed_out(a, own > c.high, own < -c.low)
        elif c.kind == "tv":
            k *= not (abs(p - q) > c.high and pushed_out(a, p > q, p < q))
        elif c.kind == "kl":
            far = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)) > c.high
            k *= not (far and pushed_out(a, p > q, p < q))
        found.append(k)
    return found


@pytest.mark.parametrize("kind", sorted(CLIPS))
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_clip_is_its_rule_on_each_token(make_stats, same, kind, seed):
    stats = make_stats(seed)
    span = SPAN[kind]
    recipe = Recipe.model_validate(
        {
            "ratio": {"of": "theta/old", "span": span},
            "clip": {"kind": kind, "low": 0.1, "high": HIGH.get(kind, 0.15)} | OWN.get(kind, {}),
        }
    )
    r = ratio(stats, "theta/old", span)
    same(clip(stats, r, recipe)[stats.mask], slow(stats, r, recipe.clip))


@pytest.mark.parametrize("kind", sorted(set(CLIPS) - {"none"}))
def test_the_clips_of_these_tests_act_on_some_tokens_and_spare_others(make_stats, kind):
    stats, span = make_stats(3, size=30), SPAN[kind]
    rule = {"kind": kind, "low": 0.1, "high": HIGH.get(kind, 0.15)} | OWN.get(kind, {})
    r = ratio(stats, "theta/old", span)
    kept = clip(stats, r, Recipe.model_validate({"ratio": {"of": "theta/old", "span": span}, "clip": rule}))
    changed = (kept == 0 if kind == "gmpo" else kept != r)[stats.mask]
    assert 0.0 < float(changed.double().mean()) < 1.0 or kind == "sapo"  # which spares a ratio of 1 alone


def weight_gradient(stats, name):
    """Minus the gradient of the surrogate loss, times the batch size: one row a response."""
    recipe = toml.build(Recipe, toml.read(name))
    leaf = stats.logp_theta.clone().requires_grad_()
    live = replace(stats, logp_theta=leaf)
    surrogate_loss(live, token_weights(live, recipe).weight).backward()
    return -leaf.grad * len(stats.advantage)


def objective_gradient(stats, objective):
    leaf = stats.logp_theta.clone().requires_grad_()
    objective(leaf).backward()
    return leaf.grad


def clipped_objective(r, a, low, high):
    return torch.minimum(r * a, r.clamp(1 - low, 1 + high) * a)


@pytest.mark.parametrize("seed", range(4))
def test_ppo_weights_are_the_gradient_of_the_clipped_objective(make_stats, same, seed):
    stats = make_stats(seed)
    a, on = stats.advantage[:, None], stats.mask

    def tokens(leaf, high):
        return torch.where(on, clipped_objective((leaf - stats.logp_old).exp(), a, 0.2, high), 0.0)

    grpo = objective_gradient(stats, lambda x: (tokens(x, 0.2).sum(-1) / on.sum(-1)).sum())
    dapo = objective_gradient(stats, lambda x: tokens(x, 0.28).sum() / on.sum() * len(a))
    same(weight_gradient(stats, "grpo"), grpo)
    same(weight_gradient(stats, "dapo"), dapo)
    assert (grpo[on] == 0).any()


@pytest.mark.parametrize("seed", range(4))
def test_gspo_weights_are_the_gradient_of_its_sequence_objective(make_stats, same, seed):
    stats = make_stats(seed, spread=1e-3)

    def objective(leaf):
        delta = torch.where(stats.mask, leaf - stats.logp_old, 0.0)
        s = (delta.sum(-1) / stats.mask.sum(-1)).exp()
        return clipped_objective(s, stats.advantage, 3e-4, 4e-4).sum()

    same(weight_gradient(stats, "gspo"), objective_gradient(stats, objective))


def test_cispo_weights_are_the_gradient_of_its_bounded_likelihood(make_stats, same):
    stats = make_stats(1, spread=1.5)

    def objective(leaf):
        bounded = (leaf - stats.logp_old).exp().detach().clamp(0.0, 5.0)
        tokens = torch.where(stats.mask, bounded * stats.advantage[:, None] * leaf, 0.0)
        return tokens.sum() / stats.mask.sum() * len(stats.advantage)

    same(weight_gradient(stats, "cispo"), objective_gradient(stats, objective))


@pytest.mark.parametrize("seed", range(4))
def test_dual_clip_weights_are_the_gradient_of_its_objective(make_stats, same, seed):
    stats = make_stats(seed, spread=1.5)

    def objective(leaf):
        r, a = (leaf - stats.logp_old).exp(), stats.advantage[:, None]
        least = clipped_objective(r, a, 0.2, 0.2)
        both = torch.where(a < 0, torch.maximum(least, 3.0 * a), least)
        return torch.where(stats.mask, both, 0.0).sum() / stats.mask.sum() * len(stats.advantage)

    found = weight_gradient(stats, "ppo-dual-clip")
    same(found, objective_gradient(stats, objective))
    assert not torch.equal(found, weight_gradient(stats, "ppo-clip"))


@pytest.mark.parametrize("seed", range(4))
def test_sapo_weights_are_the_gradient_of_its_soft_gate(make_stats, same, seed):
    stats = make_stats(seed, spread=1.5)

    def objective(leaf):
        a = stats.advantage[:, None]
        tau = torch.where(a > 0, a.new_tensor(1.0), a.new_tensor(1.05))
        gate = torch.sigmoid(tau * ((leaf - stats.logp_old).exp() - 1)) * 4 / tau
        return (torch.where(stats.mask, gate * a, 0.0).sum(-1) / stats.mask.sum(-1)).sum()

    same(weight_gradient(stats, "sapo"), objective_gradient(stats, objective))


def test_sapo_weighs_no_ratio_by_more_than_ppo_without_a_clip_and_forgets_the_far_ones():
    r = torch.logspace(-6, 8, 200, dtype=torch.float64)[None]
    ones = torch.zeros_like(r)
    for sign in (1.0, -1.0):
        stats = TokenStats(
            logp_theta=ones, logp_old=ones, logp_mu=ones, mask=ones == 0, advantage=torch.tensor([sign]).double()
        )
        found = clip(stats, r, Recipe.model_validate({"ratio": {"of": "theta/old"}, "clip": {"kind": "sapo"}}))
        assert (found <= r).all()
        assert found.isfinite().all()
        assert float(found[0, -1]) == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_gmpo_weights_are_the_gradient_of_its_geometric_mean(make_stats, same, seed):
    stats = make_stats(seed, spread=0.6)

    def objective(leaf):
        sign = stats.advantage.sign()[:, None]
        log = torch.where(stats.mask, leaf - stats.logp_old, 0.0)
        held = sign * torch.minimum(sign * log, sign * log.clamp(-0.4, 0.4))
        return (stats.advantage * (held.sum(-1) / stats.mask.sum(-1)).exp()).sum()

    found = weight_gradient(stats, "gmpo")
    same(found, objective_gradient(stats, objective))
    assert (found[1:][stats.mask[1:]] == 0).any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), budget=st.floats(1e-4, 2.0), weighted=st.booleans())
def test_a_cap_brings_the_mean_to_its_budget_and_is_infinite_where_none_is_needed(seed, budget, weighted):
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(3, 9, generator=g, dtype=torch.float64).square()
    m = torch.rand(3, 9, generator=g, dtype=torch.float64) if weighted else torch.ones(3, 9, dtype=torch.float64)
    m[0], m[1, :4] = 0.0, 0.0
    cap = capped(v, m, budget)[:, None]
    reached = (m * torch.minimum(v, cap)).sum(-1) / m.sum(-1)
    spare = (m * v).sum(-1) <= budget * m.sum(-1)
    assert spare[0]
    assert torch.equal(cap.isinf()[:, 0], spare)
    assert reached[~spare].tolist() == pytest.approx([budget] * int((~spare).sum()), rel=1e-12)


def test_m2po_s_bound_is_one_for_the_batch_and_minds_harmful_tokens_alone(make_stats):
    stats = make_stats()
    ones = torch.ones_like(stats.logp_mu)
    far = replace(
        stats, logp_theta=-1.0 * ones, logp_mu=-1.0 * ones, mask=ones.bool(), advantage=torch.ones(6).double()
    )
    far.logp_mu[0, :2] = torch.tensor([-3.0, -2.0])  # log r = 2 and 1: harmful, for A > 0
    far.logp_theta[1] = -6.0  # log r = -5: not harmful for A > 0, and no part of the mean
    recipe = Recipe.model_validate({"clip": {"kind": "m2po", "low": 0.0, "high": 0.1, "budget": 2.0}})
    r = ratio(far, "theta/mu", "token")
    # (min(4, x) + min(1, x)) / 2 = 2 at x = 3: the token with log r = 2 > √3 goes, the one with 1 stays
    kept = clip(far, r, recipe) != 0
    assert kept.logical_not().nonzero().tolist() == [[0, 0]]
    loose = recipe.model_copy(update={"clip": recipe.clip.model_copy(update={"high": 8.0})})
    assert (clip(far, r, loose) != 0).all()  # 1 + high is above both


def test_a_zero_advantage_is_never_clipped_by_a_sign(make_stats):
    stats = make_stats(spread=2.0).with_advantage(torch.zeros(6, dtype=torch.float64))
    ones = torch.ones_like(stats.logp_theta)
    for kind in ("minirl", "tv", "kl"):
        assert (clip(stats, ones, Recipe(clip=Clip(kind=kind, high=1e-6, low=0.0))) == 1).all()


def test_certain_tokens_pass_the_kl_mask_where_the_policies_agree(make_stats):
    stats = make_stats()
    sure = replace(stats, logp_theta=torch.zeros_like(stats.logp_mu), logp_mu=torch.zeros_like(stats.logp_mu))
    ones = torch.ones_like(stats.logp_theta)
    assert (clip(sure, ones, Recipe(clip=Clip(kind="kl", high=0.05))) == 1).all()


def token(log_p, log_q, advantage, dtype):
    """One response of one token."""
    p, q = (torch.tensor([[x]], dtype=dtype) for x in (log_p, log_q))
    return TokenStats(
        logp_theta=p, logp_old=p, logp_mu=q, mask=torch.ones(1, 1).bool(), advantage=torch.tensor([advantage]).to(dtype)
    )


def divergence(log_p, log_q):
    """KL(Bernoulli q || Bernoulli p) of one token in a hundred digits."""
    with localcontext() as context:
        context.prec = 100
        p, q = Decimal(log_p).exp(), Decimal(log_q).exp()
        return float(q * (q / p).ln() + (1 - q) * ((1 - q) / (1 - p)).ln())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_q", [-1e-12, -3e-8, -1e-7, -1e-3, -0.5, -0.7, -5.0, -30.0, -100.0, -800.0])
@pytest.mark.parametrize("log_p", [-1e-12, -1e-9, -1e-7, -2e-3, -0.5, -0.7, -6.0, -29.0, -110.0, -790.0])
def test_the_divergence_of_two_probabilities_is_that_of_a_hundred_digits(log_p, log_q, dtype):
    p, q = (torch.tensor(x, dtype=dtype) for x in (log_p, log_q))
    certain = -torch.finfo(dtype).eps  # what rounds to 1 is a rounding away from it
    right = divergence(min(float(p), certain), min(float(q), certain))
    assert float(bernoulli_kl(q, p)) == pytest.approx(right, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("log_p", "log_q"), [(0.0, -1e-7), (-1e-20, -1e-7), (0.0, -1e-12), (-1e-7, 0.0), (0.0, 0.0)])
def test_a_token_of_which_both_policies_are_certain_is_kept(log_p, log_q, dtype):
    for advantage in (1.0, -1.0):
        stats = token(log_p, log_q, advantage, dtype)
        assert -1e-15 < float(bernoulli_kl(stats.logp_mu, stats.logp_theta)) < 1e-5
        assert clip(stats, torch.ones(1, 1, dtype=dtype), Recipe(clip=Clip(kind="kl", high=0.05))).item() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("log_p", "log_q", "kept"),  # of a token with A > 0, with A < 0
    [
        (0.0, -0.1, (0, 1)),
        (-0.1, 0.0, (1, 0)),
        (-800.0, -0.1, (1, 0)),
        (-math.inf, -0.1, (1, 0)),
        (-900.0, -800.0, (1, 1)),
    ],
)
def test_a_token_of_which_one_policy_is_certain_is_dropped_where_it_is_pushed_on(log_p, log_q, kept, dtype):
    for advantage, right in zip((1.0, -1.0), kept, strict=True):
        stats = token(log_p, log_q, advantage, dtype)
        assert clip(stats, torch.ones(1, 1, dtype=dtype), Recipe(clip=Clip(kind="kl", high=0.05))).item() == right


@pytest.mark.parametrize("kind", sorted(CLIPS))
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_token_that_pi_cannot_choose_stays_at_ratio_0(kind, advantage):
    stats = token(-math.inf, -1.0, advantage, torch.float64)
    span = SPAN[kind]
    rule = {"ratio": {"of": "theta/mu", "span": span}, "clip": {"kind": kind, "low": 1.0, "high": 0.2}}
    assert clip(stats, ratio(stats, "theta/mu", span), Recipe.model_validate(rule)).tolist() == [[0.0]]
