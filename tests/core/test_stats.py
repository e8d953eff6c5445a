from dataclasses import replace

import pytest
import torch

from firstorder.core.errors import DataError
from firstorder.core.method.stats import TokenStats


def test_a_log_probability_of_another_shape_is_refused_by_name(make_stats):
    stats = make_stats()
    for name in ("logp_old", "logp_mu", "mask"):
        with pytest.raises(
            DataError, match=rf"`{name}` must be \[6, 8\] beside a `logp_theta` of \[6, 8\], got \[6, 7\]"
        ):
            replace(stats, **{name: getattr(stats, name)[:, :-1]})


def test_a_mask_of_numbers_is_refused(make_stats):
    stats = make_stats()
    with pytest.raises(DataError, match="`mask` must be bool"):
        replace(stats, mask=stats.mask.double())


def test_lengths_count_response_tokens_and_never_divide_by_zero(make_stats):
    stats = make_stats()
    mask = stats.mask.clone()
    mask[2] = False
    lengths = replace(stats, mask=mask).lengths
    assert lengths.tolist() == [max(1, sum(row)) for row in mask.tolist()]
    assert lengths[2] == 1


def test_sampled_responses_weigh_equally_and_exhaustive_ones_by_measure(make_stats, same):
    stats = make_stats()
    same(stats.weights, [1 / 6] * 6)
    measure = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.1, 0.1], dtype=torch.float64)
    assert replace(stats, measure=measure).weights is measure


def test_an_advantage_of_a_response_is_that_of_its_tokens(make_stats):
    stats = make_stats()
    assert stats.token_advantage.expand(6, 8)[3].unique().tolist() == [float(stats.advantage[3])]
    per_token = torch.arange(48.0, dtype=torch.float64).view(6, 8)
    assert stats.with_advantage(per_token).token_advantage is per_token


def test_an_ensemble_of_advantages_is_not_read_as_tokens(make_stats):
    square = torch.zeros(4, 4, 4, dtype=torch.float64)
    stats = replace(
        make_stats(),
        logp_theta=square,
        logp_old=square,
        logp_mu=square,
        mask=square == 0,
        kl_mu=None,
        router_shift=None,
        advantage=torch.ones(4, 4),
        rewards=None,
    )
    assert stats.with_advantage(torch.ones(4, 4)).token_advantage.shape == (4, 4, 1)


def test_the_advantages_of_tokens_do_not_spread_over_an_ensemble(make_stats):
    members = [make_stats(seed) for seed in (1, 2)]
    names = ("logp_theta", "logp_old", "logp_mu", "mask", "advantage", "kl_mu", "router_shift", "rewards")
    stack = replace(members[0], **{n: torch.stack([getattr(m, n) for m in members]) for n in names})
    for wrong in ((6, 8), (6,), (2, 8), (2, 6, 1), (1, 6), (1, 2, 6, 8), ()):
        with pytest.raises(
            DataError, match=r"`advantage` must be \[2, 6\], one a response, or \[2, 6, 8\], one a token"
        ):
            stack.with_advantage(torch.ones(wrong))
    assert stack.with_advantage(torch.ones(2, 6, 8)).token_advantage.shape == (2, 6, 8)


@pytest.mark.parametrize("name", ["kl_mu", "router_shift", "measure", "rewards"])
def test_what_stands_beside_the_log_probs_has_their_shape(make_stats, name):
    with pytest.raises(
        DataError, match=rf"`{name}` must be \[6(, 8)?\] beside a `logp_theta` of \[6, 8\], got \[5, 8\]"
    ):
        replace(make_stats(), **{name: torch.zeros(5, 8)})


@pytest.mark.parametrize("shape", [(0, 8), (6, 0), (8,), ()])
def test_an_empty_batch_is_one_line(shape):
    x = torch.zeros(shape)
    with pytest.raises(
        DataError, match=r"`logp_theta` must be \[..., batch, token\] with at least one of each, got \["
    ):
        TokenStats(logp_theta=x, logp_old=x, logp_mu=x, mask=x == 0, advantage=torch.zeros(shape[:-1]))


def put(stats, name, value, *places):
    """The batch with a value on the given tokens, all of them response tokens."""
    x = getattr(stats, name).clone()
    for place in places:
        assert stats.mask[place]
        x[place] = value
    return replace(stats, **{name: x})


@pytest.mark.parametrize("name", ["logp_theta", "logp_old", "logp_mu"])
@pytest.mark.parametrize(("value", "shown"), [(torch.nan, "nan"), (1e-6, "1e-06"), (torch.inf, "inf")])
def test_what_is_no_log_probability_is_refused_by_name_with_count_and_place(make_stats, name, value, shown):
    with pytest.raises(DataError, match=rf"`{name}` must be .*, got 2 that are not, the first {shown} at \[0, 2\]"):
        put(make_stats(), name, value, (0, 2), (3, 1))


def test_a_probability_of_0_is_one_of_pi_and_none_of_what_was_sampled(make_stats):
    for name in ("logp_theta", "logp_old"):
        put(make_stats(), name, -torch.inf, (0, 1))
    with pytest.raises(DataError, match=r"`logp_mu` must be finite .*, got 1 that is not, the first -inf at \[0, 1\]"):
        put(make_stats(), "logp_mu", -torch.inf, (0, 1))


@pytest.mark.parametrize("name", ["logp_theta", "logp_old", "logp_mu"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_log_probs_too_coarse_for_a_ratio_are_refused(make_stats, name, dtype):
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(DataError, match=f"`{name}` must be float32 or float64, got {kind}, .* from float32 logits"):
        replace(make_stats(), **{name: getattr(make_stats(), name).to(dtype)})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("advantage", torch.nan, r"`advantage` must be finite, got 2 that are not, the first nan at \[0, "),
        ("advantage", -torch.inf, r"`advantage` must be finite, got 2 that are not, the first -inf at \[0, "),
        ("kl_mu", torch.nan, r"`kl_mu` must be a distance and no NaN, got 1 that is not, the first nan at \[0, 1\]"),
        ("router_shift", torch.nan, r"`router_shift` must be a distance and no NaN, got 1 that is not"),
        ("router_shift", -0.1, r"`router_shift` must be a distance and no NaN, got 1 that is not, the first -0.1"),
    ],
)
def test_advantages_and_distances_that_are_none_are_refused(make_stats, name, value, message):
    stats = make_stats()
    if name == "advantage":
        stats = replace(stats, advantage=stats.advantage[:, None].repeat(1, 8))
    with pytest.raises(DataError, match=message):
        put(stats, name, value, (0, 1), *([(0, 2)] if name == "advantage" else []))


def test_members_carry_their_own_rows(make_stats):
    stats = replace(make_stats(), measure=torch.full((6,), 1 / 6).double())
    stack = replace(stats, **{n: torch.stack([x, x]) for n, x in vars(stats).items() if x is not None})
    assert stack.members(slice(1, 2)).logp_theta.shape == (1, 6, 8)
    assert stack.members(slice(1, 2)).measure.shape == (1, 6)
