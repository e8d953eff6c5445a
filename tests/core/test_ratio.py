import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.method.parts import SPANS
from firstorder.core.method.ratio import BOUND, LOG_BOUND, log_ratio, ratio, saturated
from firstorder.core.method.stats import TokenStats


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
            elif span in ("turn", "turn_geometric"):
                first, last = t, t
                while first and seen[first - 1]:
                    first -= 1
                while last + 1 < len(seen) and seen[last + 1]:
                    last += 1
                own = [math.exp(row[s]) for s in range(first, last + 1)]
                value = math.prod(own) ** (1 / len(own) if span == "turn_geometric" else 1)
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


@pytest.mark.parametrize("span", sorted(set(SPANS) - {"turn", "turn_geometric"}))
def test_an_environment_in_the_middle_of_a_response_is_skipped(make_stats, same, span):
    stats = make_stats()
    dense = {name: getattr(stats, name)[:1, stats.mask[0]] for name in ("logp_theta", "logp_old", "logp_mu", "mask")}
    alone = replace(stats, **dense, advantage=stats.advantage[:1], kl_mu=None, router_shift=None, rewards=None)
    same(ratio(stats, "theta/old", span, 2)[0, stats.mask[0]], ratio(alone, "theta/old", span, 2)[0])


@pytest.mark.parametrize("span", ["turn", "turn_geometric"])
def test_a_turn_is_what_the_environment_leaves_in_one_piece_or_what_it_is_said_to_be(make_stats, same, span):
    stats = make_stats()
    own, whole = ratio(stats, "theta/mu", span), {"turn": "sequence", "turn_geometric": "geometric"}[span]
    first, second = (replace(stats, mask=stats.mask & cut) for cut in (torch.arange(8) < 4, torch.arange(8) >= 4))
    same(own[0, 1:3], ratio(first, "theta/mu", whole)[0, 1:3])  # the mask of response 0 is 01100110
    same(own[0, 5:7], ratio(second, "theta/mu", whole)[0, 5:7])
    one = replace(stats, turn=torch.ones_like(stats.mask).long())
    same(ratio(one, "theta/mu", span)[stats.mask], ratio(stats, "theta/mu", whole)[stats.mask])
    said = replace(stats, mask=torch.ones_like(stats.mask), turn=1 + torch.arange(8).expand(6, 8) // 3)
    parts = [replace(said, mask=said.turn == n, turn=None) for n in (1, 2, 3)]
    expected = torch.cat([ratio(p, "theta/mu", whole)[:, 3 * i : 3 * i + 3] for i, p in enumerate(parts)], -1)
    same(ratio(said, "theta/mu", span), expected)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("span", sorted(set(SPANS) - {"geometric", "turn_geometric"}))
def test_a_product_is_held_at_one_bound_in_both_dtypes(make_stats, span, dtype):
    stats = make_stats(dtype=dtype)
    far = replace(stats, logp_theta=torch.full_like(stats.logp_theta, -1.0), logp_mu=stats.logp_mu - 60.0)
    value = ratio(far, "theta/mu", span, 4)[far.mask]
    assert value.dtype is dtype
    assert value.max() == torch.tensor(BOUND, dtype=dtype)
    assert saturated(value).any()
    assert torch.tensor(LOG_BOUND, dtype=torch.float64).exp() == pytest.approx(BOUND)


def test_a_ratio_is_held_above_its_bound_and_nowhere_else(make_stats, same):
    stats = make_stats()
    for nats, held in ((LOG_BOUND - 1e-9, False), (LOG_BOUND + 1e-9, True), (-700.0, False)):
        apart = replace(stats, logp_theta=stats.logp_mu + nats if nats < 0 else stats.logp_mu)
        apart = apart if nats < 0 else replace(apart, logp_mu=stats.logp_mu - nats)
        k = ratio(apart, "theta/mu", "token")[apart.mask]
        assert (saturated(k) == held).all()
        torch.testing.assert_close(k, torch.full_like(k, min(math.exp(nats), BOUND)), rtol=1e-12, atol=0)


LONG = 32_768


def one_response(theta, mu, dtype=torch.float64):
    theta, mu = (torch.as_tensor(x, dtype=dtype)[None] for x in (theta, mu))
    ones = torch.ones(1, dtype=dtype)
    return TokenStats(
        logp_theta=theta, logp_old=theta, logp_mu=mu, mask=torch.ones_like(theta, dtype=torch.bool), advantage=ones
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("span", ["prefix", "sequence", "forward"])
def test_a_hundredth_of_a_nat_a_token_over_32768_tokens_stays_finite(span, dtype):
    stats = one_response(torch.full((LONG,), -0.9), torch.full((LONG,), -0.91), dtype)
    k = ratio(stats, "theta/mu", span, LONG)
    assert k.max() == torch.tensor(BOUND, dtype=dtype)
    small = {"prefix": k[0, 0], "sequence": None, "forward": k[0, -1]}[span]
    assert small is None or float(small) == pytest.approx(math.exp(0.01), rel=1e-6)


@pytest.mark.parametrize(("span", "steps"), [("prefix", 1), ("forward", 5), ("forward", LONG), ("geometric", 1)])
def test_long_products_of_float32_lose_nothing_to_their_sums(span, steps):
    noise = torch.randn(LONG, generator=torch.Generator().manual_seed(0)) * 1e-2
    mu = torch.full((LONG,), -2.0)
    single, double = (one_response(mu + noise, mu, dtype) for dtype in (torch.float32, torch.float64))
    found, right = (ratio(s, "theta/mu", span, steps) for s in (single, double))
    torch.testing.assert_close(found.double(), right, rtol=1e-7, atol=0)


@pytest.mark.parametrize("steps", [5, 6, 2**62, 2**63 - 1])
def test_more_forward_steps_than_tokens_are_all_tokens(make_stats, same, steps):
    stats = make_stats(length=5)
    same(ratio(stats, "theta/mu", "forward", steps)[stats.mask], ratio(stats, "theta/mu", "forward", 5)[stats.mask])


NOTHING = -torch.inf
IMPOSSIBLE = {  # the first token has probability 0 under the numerator, the others are as likely under both
    "token": [0.0, 1.0, 1.0],
    "prefix": [0.0, 0.0, 0.0],
    "sequence": [0.0, 0.0, 0.0],
    "geometric": [0.0, 0.0, 0.0],
    "turn": [0.0, 0.0, 0.0],
    "turn_geometric": [0.0, 0.0, 0.0],
    "forward": [0.0, 1.0, 1.0],
    "min_prefix": [0.0, 0.0, 0.0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("span", sorted(SPANS))
def test_a_token_that_pi_cannot_choose_has_ratio_0_in_every_span(span, dtype):
    stats = one_response([NOTHING, -1.0, -2.0], [-3.0, -1.0, -2.0], dtype)
    for of in ("theta/mu", "old/mu"):
        assert ratio(stats, of, span).tolist() == [IMPOSSIBLE[span]]
    later = replace(stats, logp_theta=stats.logp_theta.roll(2, -1), logp_mu=stats.logp_mu.roll(2, -1))
    assert ratio(later, "theta/mu", "forward", 2).tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("span", sorted(SPANS))
def test_a_ratio_over_a_probability_of_0_is_at_the_bound_unless_a_0_stands_above(span):
    stats = one_response([-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0])
    over = replace(stats, logp_old=torch.tensor([[NOTHING, -1.0, -1.0]]).double())
    k = ratio(over, "theta/old", span)
    assert saturated(k[0, 0])
    assert k.isfinite().all()
    both = replace(over, logp_theta=torch.tensor([[-1.0, NOTHING, -1.0]]).double())
    assert ratio(both, "theta/old", "sequence").tolist() == [[0.0, 0.0, 0.0]]
    neither = replace(over, logp_theta=over.logp_old)
    assert ratio(neither, "theta/old", span).tolist() == [IMPOSSIBLE[span]]


ODD = [0.0, -0.0, -1e-300, -1e-8, -1.0, -19.0, -21.0, -745.0, -1e5, -1e30]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("span", sorted(SPANS))
@settings(max_examples=25, deadline=None)
@given(data=st.data(), length=st.sampled_from([1, 2, 5, 40]), steps=st.integers(1, 50))
def test_no_admissible_log_probs_make_a_ratio_that_is_not_between_0_and_the_bound(span, dtype, data, length, steps):
    def column(values):
        return torch.tensor(
            [data.draw(st.lists(st.sampled_from(values), min_size=length, max_size=length))], dtype=dtype
        )

    mask = torch.tensor([data.draw(st.lists(st.booleans(), min_size=length, max_size=length))])
    stats = TokenStats(
        logp_theta=column([*ODD, NOTHING]),
        logp_old=column([*ODD, NOTHING]),
        logp_mu=column(ODD),
        mask=mask,
        advantage=torch.ones(1, dtype=dtype),
    )
    for of in ("theta/mu", "theta/old", "old/mu"):
        k = ratio(stats, of, span, steps)
        assert ((k >= 0) & (k <= torch.tensor(BOUND, dtype=dtype))).all()


def test_leading_axes_are_an_ensemble(make_stats, same):
    parts = [make_stats(seed) for seed in (1, 2, 3)]
    names = ("logp_theta", "logp_old", "logp_mu", "mask", "advantage", "kl_mu", "router_shift", "rewards")
    stack = replace(parts[0], **{n: torch.stack([getattr(p, n) for p in parts]) for n in names})
    for span in SPANS:
        for i, part in enumerate(parts):
            same(ratio(stack, "theta/mu", span, 2)[i], ratio(part, "theta/mu", span, 2))
