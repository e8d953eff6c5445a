import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.ratio import MAX_LOG_RATIO, SPANS, log_ratio, ratio


def slow(span, delta, mask, steps):
    """One response at a time, one token at a time, over response tokens only."""
    result = [[None] * len(row) for row in delta]
    for b, (row, seen) in enumerate(zip(delta, mask, strict=True)):
        at = [t for t, on in enumerate(seen) if on]
        r = [math.exp(row[t]) for t in at]
        for i, t in enumerate(at):
            if span == "token":
                value = r[i]
            elif span == "prefix":
                value = math.prod(r[: i + 1])
            elif span == "sequence":
                value = math.prod(r)
            elif span == "geometric":
                value = math.prod(r) ** (1 / len(r))
            elif span == "forward":
                value = math.prod(r[i : i + steps])
            else:
                value = r[i] * min(r[:i], default=1.0)
            result[b][t] = value
    return result


def on_mask(values, mask):
    return [v for row, seen in zip(values, mask.tolist(), strict=True) for v, on in zip(row, seen, strict=True) if on]


@pytest.mark.parametrize("of", ["theta/mu", "theta/old", "old/mu"])
def test_a_log_ratio_is_a_difference_on_the_mask_and_zero_off_it(make_stats, same, of):
    stats = make_stats()
    above, below = (getattr(stats, f"logp_{name}").tolist() for name in of.split("/"))
    expected = [
        [a - b if on else 0.0 for a, b, on in zip(*rows, strict=True)]
        for rows in zip(above, below, stats.mask.tolist(), strict=True)
    ]
    same(log_ratio(stats, of), expected)


@pytest.mark.parametrize("span", sorted(SPANS))
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), steps=st.integers(1, 9))
def test_every_span_is_its_product_over_response_tokens(make_stats, same, span, seed, steps):
    stats = make_stats(seed)
    delta = (stats.logp_theta - stats.logp_mu).tolist()
    expected = slow(span, delta, stats.mask.tolist(), steps)
    actual = ratio(stats, "theta/mu", span, steps)
    same(actual[stats.mask], on_mask(expected, stats.mask))


@pytest.mark.parametrize("span", sorted(SPANS))
def test_an_environment_in_the_middle_of_a_response_is_skipped(make_stats, same, span):
    stats = make_stats()
    dense = {name: getattr(stats, name)[:1, stats.mask[0]] for name in ("logp_theta", "logp_old", "logp_mu", "mask")}
    alone = replace(stats, **dense, advantage=stats.advantage[:1], kl_mu=None, router_shift=None)
    same(ratio(stats, "theta/old", span, 2)[0, stats.mask[0]], ratio(alone, "theta/old", span, 2)[0])


def test_staleness_times_discrepancy_is_the_whole_ratio(make_stats, same):
    stats = make_stats()
    for span in ("token", "prefix", "sequence", "geometric"):
        product = ratio(stats, "theta/old", span) * ratio(stats, "old/mu", span)
        same(product, ratio(stats, "theta/mu", span))


def test_one_forward_step_is_the_token_and_all_of_them_the_remainder(make_stats, same):
    stats = make_stats()
    on = stats.mask
    same(ratio(stats, "theta/mu", "forward", 1)[on], ratio(stats, "theta/mu", "token")[on])
    remainder = ratio(stats, "theta/mu", "forward", 100) * ratio(stats, "theta/mu", "prefix")
    whole = ratio(stats, "theta/mu", "sequence") * ratio(stats, "theta/mu", "token")
    same(remainder[on], whole[on])


def test_no_ratio_is_one(make_stats):
    assert (ratio(make_stats(), "none", "token") == 1).all()


def test_a_ratio_carries_no_gradient(make_stats):
    stats = make_stats()
    stats = replace(stats, logp_theta=stats.logp_theta.clone().requires_grad_())
    assert not any(ratio(stats, "theta/mu", span).requires_grad for span in SPANS)


@pytest.mark.parametrize("span", sorted(SPANS))
def test_a_long_product_saturates_instead_of_overflowing(make_stats, span):
    stats = make_stats(dtype=torch.float32)
    far = replace(stats, logp_theta=torch.full_like(stats.logp_theta, -1.0), logp_mu=stats.logp_mu - 60.0)
    value = ratio(far, "theta/mu", span, 4)
    assert torch.isfinite(value).all()
    assert value.max() <= math.exp(MAX_LOG_RATIO) * (1 + 1e-5)


def test_leading_axes_are_an_ensemble(make_stats, same):
    parts = [make_stats(seed) for seed in (1, 2, 3)]
    names = ("logp_theta", "logp_old", "logp_mu", "mask", "advantage", "kl_mu", "router_shift")
    stack = replace(parts[0], **{n: torch.stack([getattr(p, n) for p in parts]) for n in names})
    for span in SPANS:
        for i, part in enumerate(parts):
            same(ratio(stack, "theta/mu", span, 2)[i], ratio(part, "theta/mu", span, 2))
