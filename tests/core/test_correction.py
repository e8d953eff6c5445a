import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.method.correction import correction
from firstorder.core.method.parts import CORRECTIONS
from firstorder.core.method.ratio import BOUND, LOG_BOUND
from firstorder.core.method.recipe import Correction, Recipe
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.surrogate import token_weights


def responses(stats, of):
    """Per response: the log-ratios of its response tokens, in plain numbers."""
    above, below = (getattr(stats, f"logp_{name}") for name in of.split("/"))
    return [(a - b)[on].tolist() for a, b, on in zip(above, below, stats.mask, strict=True)]


def slow(stats, c):
    found = []
    for b, deltas in enumerate(responses(stats, c.of)):
        whole = sum(deltas)
        for delta in deltas:
            k, w = math.exp(delta), math.exp(whole)
            c1, c2 = c.positive if stats.advantage[b] > 0 else c.negative
            found.append(
                {
                    "none": 1.0,
                    "ratio": k,
                    "truncate": max(c.low, min(k, c.high)),
                    "mask": k if c.low <= k <= c.high else 0.0,
                    "vespo": w**c1 * math.exp(c2 * (1 - w)),
                }[c.kind]
            )
    return found


BOUNDS = {
    "truncate": {"low": 0.8, "high": 1.1},
    "mask": {"low": 0.7, "high": 1.4},
}


@pytest.mark.parametrize("kind", sorted(CORRECTIONS))
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), of=st.sampled_from(["theta/mu", "old/mu", "theta/old"]))
def test_every_correction_is_its_formula_on_each_token(make_stats, same, kind, seed, of):
    stats = make_stats(seed)
    c = Correction(kind=kind, of=of, **BOUNDS.get(kind, {}))
    same(correction(stats, c)[stats.mask], slow(stats, c))


@pytest.mark.parametrize("kind", [kind for kind, part in CORRECTIONS.items() if "high" in part.keys])
def test_the_bounds_of_these_tests_act_on_some_tokens_and_spare_others(make_stats, kind):
    stats = make_stats(3, size=30)
    factor = correction(stats, Correction(kind=kind, **BOUNDS[kind]))[stats.mask]
    assert factor.unique().numel() > 1


@pytest.mark.parametrize("kind", ["ratio", "truncate", "mask"])
def test_a_ratio_correction_follows_its_span(make_stats, same, kind):
    stats = make_stats()
    c = Correction(kind=kind, of="old/mu", span="sequence", low=0.5, high=1.5)
    rule = {
        "ratio": lambda w: w,
        "truncate": lambda w: max(min(w, 1.5), 0.5),
        "mask": lambda w: w if 0.5 <= w <= 1.5 else 0.0,
    }
    expected = [rule[kind](math.exp(sum(d))) for d in responses(stats, "old/mu") for _ in d]
    same(correction(stats, c)[stats.mask], expected)


def test_a_bound_itself_is_inside(make_stats):
    stats = make_stats()
    stats = replace(stats, logp_old=stats.logp_mu)
    kept = correction(stats, Correction(kind="mask", low=1.0, high=2.0))
    assert (kept[stats.mask] == 1).all()


def test_a_truncation_without_a_lower_bound_leaves_small_ratios(make_stats, same):
    stats = make_stats()
    k = correction(stats, Correction(kind="ratio", span="sequence"))
    same(correction(stats, Correction(kind="truncate", span="sequence", high=1.1)), k.clamp(max=1.1))


@pytest.mark.parametrize("span", ["token", "prefix", "turn", "sequence", "geometric"])
def test_a_correction_of_mean_one_has_it_over_tokens_or_over_responses(make_stats, same, span):
    stats = make_stats(3, size=12, spread=0.6)
    stats = replace(stats, mask=stats.mask & (torch.arange(12) > 0)[:, None])  # the first has no token
    rule = {"kind": "truncate", "span": span, "high": 1.2}
    plain, divided = (Recipe.model_validate({"correction": rule | keys}) for keys in ({}, {"mean_one": True}))
    k = [row[on] for row, on in zip(correction(stats, plain.correction), stats.mask, strict=True) if on.any()]
    one_each = torch.stack([row[0] for row in k]) if span in ("sequence", "geometric") else torch.cat(k)
    same(token_weights(stats, divided).weight * one_each.mean(), token_weights(stats, plain).weight)


def test_a_batch_whose_corrections_are_all_0_is_not_divided_by_their_mean(make_stats):
    stats = make_stats()
    rule = {"kind": "mask", "low": 1e4, "high": 1e5, "mean_one": True}
    assert (token_weights(stats, Recipe.model_validate({"correction": rule})).weight == 0).all()


def test_vespo_is_one_where_the_policies_agree_and_survives_where_they_do_not(make_stats):
    stats = make_stats()
    c = Correction(kind="vespo", of="theta/mu")
    assert (correction(replace(stats, logp_mu=stats.logp_theta), c)[stats.mask] == 1).all()
    for name in ("logp_theta", "logp_mu"):
        far = replace(stats, **{name: getattr(stats, name) - 300.0})
        assert (correction(far, c)[stats.mask] == 0).all()


def test_the_exponents_of_vespo_are_read_in_float64(make_stats, same):
    stats = make_stats()
    c = Correction(kind="vespo", of="theta/mu", positive=(0.1, 0.3), negative=(0.7, 1.1))
    same(correction(stats, c)[stats.mask], slow(stats, c))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0.01, -0.01, 3.0, -3.0])
@pytest.mark.parametrize("exponents", [(2.0, 3.0), (0.0, 3.0), (2.0, 0.0), (100.0, 1e-3)])
def test_vespo_over_32768_tokens_is_its_formula_or_the_bound(make_stats, dtype, shift, exponents):
    logp = torch.full((2, 32_768), -4.0, dtype=dtype)
    mask = torch.ones(2, 32_768, dtype=torch.bool)
    mask[1, 100:] = False
    stats = TokenStats(logp_theta=logp + shift, logp_old=logp, logp_mu=logp, mask=mask, advantage=torch.ones(2))
    found = correction(stats, Correction(kind="vespo", of="theta/mu", positive=exponents))
    for row, tokens in enumerate((32_768, 100)):
        log_w = float((stats.logp_theta - logp)[row].double()[:tokens].sum())
        exponent = exponents[0] * log_w + exponents[1] * (1 - math.exp(min(log_w, 30.0)))
        expected = math.exp(min(exponent, LOG_BOUND)) if exponent > -700 else 0.0
        assert float(found[row, 0]) == pytest.approx(expected, rel=1e-5, abs=1e-30)
        assert (found[row] == found[row, 0]).all()


@pytest.mark.parametrize(("nats", "kept"), [(19.0, True), (22.0, True), (24.0, False), (900.0, False)])
def test_a_mask_reads_the_ratio_and_not_what_it_is_held_at(nats, kept):
    logp = torch.full((1, 1), -1000.0, dtype=torch.float64)
    stats = TokenStats(
        logp_theta=logp, logp_old=logp + nats, logp_mu=logp, mask=logp < 0, advantage=torch.ones(1).double()
    )
    factor = correction(stats, Correction(kind="mask", high=1e10))  # exp(23.03)
    assert (factor > 0).item() == kept
    assert factor.item() == kept * min(BOUND, float(torch.tensor(nats).double().exp()))


@pytest.mark.parametrize("kind", sorted(CORRECTIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_token_that_pi_cannot_choose_makes_no_correction_nan(make_stats, kind, dtype):
    stats = make_stats(dtype=dtype)
    nothing = stats.logp_old.clone()
    nothing[0, 1] = -torch.inf
    stats = replace(stats, logp_old=nothing, kl_mu=torch.where(nothing.isinf(), torch.inf, stats.kl_mu))
    factor = correction(stats, Correction(kind=kind, **BOUNDS.get(kind, {})))
    assert factor.dtype is dtype
    assert factor[stats.mask].isfinite().all()
    if CORRECTIONS[kind].compares:
        lowest = torch.tensor(
            BOUNDS.get(kind, {}).get("low", 0.0), dtype=dtype
        )  # where a correction holds k from below
        assert factor[0, 1] in (0, lowest)
