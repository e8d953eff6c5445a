import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.errors import ConfigError, DataError
from firstorder.core.method.older import MOVED
from firstorder.core.method.parts import OVERS, REJECTIONS
from firstorder.core.method.recipe import Recipe, Rejection, fingerprint
from firstorder.core.method.rejection import kept
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.surrogate import receipts, token_weights
from firstorder.core.settings.toml import build, override, read

KINDS = sorted(set(REJECTIONS) - {"none"})
BOUNDS = {  # of a token, and of what a response makes of its tokens
    "ratio": {"token": (0.8, 1.3), "sum": (0.4, 1.6), "mean": (0.9, 1.1), "max": (0.5, 1.5)},
    "k1": {"token": (-0.2, 0.3), "sum": (-0.5, 0.6), "mean": (-0.1, 0.15), "max": (-1.0, 0.4)},
    "k2": {"token": (-math.inf, 0.05), "sum": (0.1, 0.4), "mean": (-math.inf, 0.07), "max": (-math.inf, 0.2)},
    "k3": {"token": (-math.inf, 0.05), "sum": (0.1, 0.4), "mean": (-math.inf, 0.07), "max": (-math.inf, 0.2)},
    "kl": {"token": (-math.inf, 0.02), "sum": (-math.inf, 0.1), "mean": (-math.inf, 0.016), "max": (0.01, 0.05)},
}
EACH = pytest.mark.parametrize(("kind", "over"), [(kind, over) for kind in KINDS for over in OVERS])


def slow(stats, rule):
    found = []
    above, below = (getattr(stats, f"logp_{name}") for name in rule.of.split("/"))
    for b, on in enumerate(stats.mask):
        d = (above - below)[b][on].tolist()
        v = {
            "ratio": [math.exp(x) for x in d],
            "k1": [-x for x in d],
            "k2": [x**2 / 2 for x in d],
            "k3": [math.exp(x) - 1 - x for x in d],
            "kl": stats.kl_mu[b][on].tolist(),
        }[rule.kind]
        if rule.over != "token":
            product = rule.kind == "ratio"
            total = math.prod(v) if product else sum(v)
            one = {"sum": total, "mean": total ** (1 / len(v)) if product else fmean(v), "max": max(v)}[rule.over]
            v = [one] * len(v)
        spared = rule.where == "negative" and stats.advantage[b] >= 0
        found += [float(spared or rule.low <= x <= rule.high) for x in v]
    return found


def rule_of(kind, over, **keys):
    low, high = BOUNDS[kind][over]
    return Rejection(kind=kind, over=over, low=low, high=high, **keys)


@EACH
@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    of=st.sampled_from(["theta/mu", "old/mu", "theta/old"]),
    where=st.sampled_from(["always", "negative"]),
)
def test_every_rejection_is_its_formula_on_each_token(make_stats, kind, over, seed, of, where):
    stats, rule = make_stats(seed), rule_of(kind, over, of=of, where=where)
    assert kept(stats, rule)[stats.mask].tolist() == slow(stats, rule)


@EACH
def test_the_bounds_of_these_tests_reject_some_and_keep_others(make_stats, kind, over):
    stats = make_stats(3, size=40)
    assert kept(stats, rule_of(kind, over))[stats.mask].unique().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("over", sorted(set(OVERS) - {"token"}))
def test_a_response_is_kept_or_left_out_as_a_whole(make_stats, over):
    stats = make_stats(3, size=40)
    found = kept(stats, rule_of("k3", over))
    assert torch.equal(found, found[:, :1].expand_as(found))


def test_a_bound_itself_is_inside(make_stats):
    stats = make_stats()
    stats = replace(stats, logp_old=stats.logp_mu)
    for over in OVERS:
        assert (kept(stats, Rejection(kind="ratio", over=over, low=1.0, high=2.0))[stats.mask] == 1).all()
        assert (kept(stats, Rejection(kind="k3", over=over, low=0.0, high=1.0))[stats.mask] == 1).all()


def test_one_far_token_drops_its_whole_response_and_no_other(make_stats):
    stats = make_stats()
    kl = torch.zeros_like(stats.kl_mu)
    kl[2, 1] = 0.2
    found = kept(replace(stats, kl_mu=kl), Rejection(kind="kl", over="max", high=0.05))
    assert (found[2] == 0).all()
    assert (found[[0, 1, 3, 4, 5]] == 1).all()


def test_only_negative_advantages_are_minded_where_a_rule_says_so(make_stats):
    stats = make_stats(3, size=40)
    rule = rule_of("k1", "mean")
    every, negative = kept(stats, rule), kept(stats, rule.model_copy(update={"where": "negative"}))
    lost = stats.advantage < 0
    assert torch.equal(negative[lost], every[lost])
    assert (negative[~lost] == 1).all()
    assert (every[~lost] == 0).any()


def test_a_rejection_without_its_measurement_is_refused(make_stats):
    with pytest.raises(DataError, match="`kl` needs `kl_mu`"):
        kept(replace(make_stats(), kl_mu=None), Rejection(kind="kl", high=0.9))


@pytest.mark.parametrize(("nats", "inside"), [(19.0, True), (22.0, True), (24.0, False), (900.0, False)])
def test_a_rejection_reads_the_ratio_and_not_what_it_is_held_at(nats, inside):
    logp = torch.full((1, 1), -1000.0, dtype=torch.float64)
    stats = TokenStats(
        logp_theta=logp, logp_old=logp + nats, logp_mu=logp, mask=logp < 0, advantage=torch.ones(1).double()
    )
    assert kept(stats, Rejection(kind="ratio", over="sum", high=1e10)).item() == inside  # exp(23.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EACH
def test_a_token_that_pi_cannot_choose_is_as_far_as_can_be(make_stats, kind, over, dtype):
    stats = make_stats(dtype=dtype)
    nothing = stats.logp_old.clone()
    nothing[0, 1] = -torch.inf
    stats = replace(stats, logp_old=nothing, kl_mu=torch.where(nothing.isinf(), torch.inf, stats.kl_mu))
    found = kept(stats, Rejection(kind=kind, over=over, low=0.01 if kind == "ratio" else -1e4, high=1e4))
    assert found.dtype is dtype
    assert found.isfinite().all()
    assert found[0, 1] == float(kind == "ratio" and over == "max")


def test_k3_of_a_small_log_ratio_is_not_rounded_to_nothing():
    logp = torch.full((1, 1), -1.0, dtype=torch.float64)
    stats = TokenStats(
        logp_theta=logp, logp_old=logp + 1e-6, logp_mu=logp, mask=logp < 0, advantage=torch.ones(1).double()
    )
    assert kept(stats, Rejection(kind="k3", low=4.9e-13, high=5.1e-13)).item() == 1


@EACH
def test_a_weight_with_a_rejection_is_homogeneous_in_the_advantage(make_stats, same, kind, over):
    for where in ("always", "negative"):
        recipe = Recipe.model_validate({"rejection": rule_of(kind, over, where=where).model_dump()})
        stats = make_stats(3, size=12)
        up, down = (
            token_weights(stats.with_advantage(sign * torch.ones(12, dtype=torch.float64)), recipe).weight
            for sign in (1, -1)
        )
        a = stats.advantage[:, None]
        same(token_weights(stats, recipe).weight, a.clamp(min=0) * up + (-a).clamp(min=0) * down)


def test_a_correction_and_a_rejection_act_together_and_are_counted_apart(make_stats, same):
    stats = make_stats(3, size=12)
    both = {"correction": {"kind": "truncate", "high": 1.1}, "rejection": {"kind": "ratio", "over": "sum", "high": 1.3}}
    recipe = Recipe.model_validate(both)
    alone = Recipe.model_validate({"correction": both["correction"]})
    made, bare = token_weights(stats, recipe), token_weights(stats, alone)
    keep = kept(stats, recipe.rejection)
    same(made.weight, bare.weight * keep)
    acted, before = receipts(stats, made, recipe), receipts(stats, bare, alone)
    assert acted["truncated"][0] == before["truncated"][0] > 0
    assert before["masked"][0] == 0
    assert acted["masked"][0] == ((keep == 0) & stats.mask).sum() > 0
    only = Recipe.model_validate({"rejection": both["rejection"]})
    assert receipts(stats, token_weights(stats, only), only)["corrected"] == acted["masked"]


OLDER = {
    "sequence_mask": ({"of": "theta/mu", "high": 2.0}, {"low": 0.5}),
    "geometric_mask": ({"low": 0.999, "high": 1.001}, {"of": "theta/old"}),
    "max_kl": ({"of": "theta/mu", "high": 0.05}, {"high": 0.02}),
    "mean_kl": ({"high": 0.001}, {"high": 0.02}),
}


@pytest.mark.parametrize("kind", MOVED)
def test_a_mask_that_was_a_correction_is_read_as_the_rejection_that_it_is(kind):
    keys, change = OLDER[kind]
    (name, over), base = MOVED[kind], read("minirl-no-clip")
    base.pop("correction", None)
    older = base | {"correction": {"kind": kind, **keys}}
    found = build(Recipe, older)
    assert found == build(Recipe, base | {"rejection": {"kind": name, "over": over, **keys}})
    assert found.correction.kind == "none"
    assert build(Recipe, found.model_dump()) == found
    changed = build(Recipe, override(older, [f"correction.{key}={value}" for key, value in change.items()]))
    assert changed == found.with_({"rejection": change})
    assert fingerprint(changed) != fingerprint(found)


def test_both_spellings_at_once_are_refused():
    with pytest.raises(ConfigError, match="is the older name of rejection"):
        build(Recipe, {"correction": {"kind": "sequence_mask", "high": 2.0}, "rejection": {"kind": "k3", "high": 1.0}})
