import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.quantities import add
from firstorder.core.training.diagnostics import diagnose
from firstorder.core.training.strata import QUANTITIES, finalise, moments

NAMES = ("kl_failing", "kl_succeeding")
FIELDS = ("logp_theta", "logp_old", "logp_mu", "mask", "advantage", "kl_mu", "router_shift", "rewards")


def found(stats):
    return {name: float(value) for name, value in finalise(moments(stats)).items()}


def slow(stats):
    """One token at a time, in plain numbers."""
    parts = {name: [] for name in NAMES}
    for old, mu, on, a in zip(stats.logp_old, stats.logp_mu, stats.mask, stats.advantage, strict=True):
        for t in range(len(old)):
            worth = float(a[t] if a.ndim else a)
            if on[t] and worth:
                parts[NAMES[worth > 0]].append(float(mu[t]) - float(old[t]))
    return {name: statistics.fmean(d) if d else 0.0 for name, d in parts.items()}


def per_token(stats, seed=0):
    """The same batch under an advantage of every token, NaN off the mask, where a critic says nothing."""
    g = torch.Generator().manual_seed(seed)
    advantage = torch.randn(stats.mask.shape, generator=g, dtype=torch.float64)
    advantage[..., ::3] = 0.0
    return stats.with_advantage(torch.where(stats.mask, advantage, torch.nan))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), of_token=st.booleans())
def test_each_is_the_mean_over_its_tokens_alone(make_stats, seed, of_token):
    stats = make_stats(seed)
    stats = per_token(stats, seed) if of_token else stats
    assert found(stats) == pytest.approx(slow(stats), rel=1e-12, abs=1e-15)


def test_the_two_parts_and_the_tokens_without_advantage_make_up_the_kl(make_stats):
    stats = make_stats()
    sums = moments(stats)
    neither = stats.mask & (stats.advantage == 0)[:, None]
    rest = (stats.logp_mu - stats.logp_old)[neither]
    assert len(rest) > 0
    total = sum(float(sums[name][0]) for name in NAMES) + float(rest.sum())
    count = sum(float(sums[name][1]) for name in NAMES) + len(rest)
    assert total / count == pytest.approx(float(diagnose(stats)["kl"]), rel=1e-12)


@pytest.mark.parametrize("of_token", [False, True])
def test_an_ensemble_has_each_member_s_own(make_stats, of_token, same):
    each = [per_token(make_stats(seed), seed) if of_token else make_stats(seed) for seed in range(3)]
    whole = replace(each[0], **{name: torch.stack([getattr(one, name) for one in each]) for name in FIELDS})
    for name, value in finalise(moments(whole)).items():
        same(value, [found(one)[name] for one in each])


@pytest.mark.parametrize("sign", [0.0, 1.0, -1.0])
def test_a_part_without_tokens_is_zero(make_stats, sign):
    stats = make_stats()
    alone = found(stats.with_advantage(torch.full_like(stats.advantage, sign)))
    kl = float(diagnose(stats)["kl"])
    assert alone == pytest.approx(dict(zip(NAMES, (kl * (sign < 0), kl * (sign > 0)), strict=True)), rel=1e-12)


@pytest.mark.parametrize("of_token", [False, True])
def test_what_stands_off_the_mask_counts_nowhere(make_stats, of_token):
    stats = per_token(make_stats()) if of_token else make_stats()
    broken = replace(stats, logp_old=torch.where(stats.mask, stats.logp_old, torch.nan))
    assert found(broken) == found(stats)
    mask = stats.mask.clone()
    mask[2] = False  # a response without tokens
    fewer = {name: torch.cat([x[:2], x[3:]]) for name in FIELDS if (x := getattr(stats, name)) is not None}
    assert found(replace(stats, mask=mask)) == pytest.approx(found(replace(stats, **fewer)), rel=1e-12)


@pytest.mark.parametrize("of_token", [False, True])
def test_moments_of_parts_of_a_batch_add_up(make_stats, of_token):
    whole = per_token(make_stats(size=8)) if of_token else make_stats(size=8)
    parts = [
        moments(replace(whole, **{name: getattr(whole, name)[cut] for name in FIELDS}))
        for cut in (slice(1), slice(1, 8))  # the first has the advantage 0: it is in no part
    ]
    assert float(parts[0]["kl_failing"][1]) == 0 or of_token
    summed = {name: float(value) for name, value in finalise(add(*parts)).items()}
    assert summed == pytest.approx(found(whole), rel=1e-12)


def test_a_measure_counts_like_repeated_responses(make_stats):
    counts = torch.tensor([1, 2, 3, 1, 5, 4])
    exhaustive = replace(make_stats(), measure=counts.double() / 16)
    repeated = {name: getattr(exhaustive, name).repeat_interleave(counts, 0) for name in FIELDS}
    assert found(replace(exhaustive, **repeated, measure=None)) == pytest.approx(found(exhaustive), rel=1e-12)


def test_single_precision_loses_no_digit_of_a_long_batch(make_stats):
    stats = make_stats(dtype=torch.float32)
    doubled = {name: getattr(stats, name).double() for name in FIELDS if name != "mask"}
    assert found(stats) == found(replace(stats, **doubled))


def test_only_what_was_summed_is_reported(make_stats):
    assert set(finalise(moments(make_stats()))) == set(QUANTITIES) - {"kl_flipped"} == set(NAMES)
    one, zero = torch.ones(()), torch.zeros(())
    assert finalise({"kl_flipped": (zero, zero), "d": (one, one)}) == {"kl_flipped": 0.0}
    assert math.isclose(float(finalise({"kl_flipped": (3 * one, 2 * one)})["kl_flipped"]), 1.5)
