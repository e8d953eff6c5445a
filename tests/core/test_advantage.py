import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.errors import ConfigError, DataError
from firstorder.core.method.advantage import STD_EPSILON, advantage
from firstorder.core.method.parts import BASELINES
from firstorder.core.method.recipe import Advantage
from firstorder.core.method.scale import scaled

REWARDS = st.lists(st.floats(-10, 10), min_size=2, max_size=9)


def of(rewards, baseline, std=False):
    return advantage(torch.tensor(rewards, dtype=torch.float64), Advantage(baseline=baseline, std=std))


def slow(rewards, baseline):
    """What each response is measured against, one after the other."""
    others = [[*rewards[:i], *rewards[i + 1 :]] for i in range(len(rewards))]
    return {
        "none": [0.0 for _ in rewards],
        "group_mean": [statistics.fmean(rewards) for _ in rewards],
        "leave_one_out": [statistics.fmean(rest) for rest in others],
    }[baseline]


@pytest.mark.parametrize("baseline", sorted(BASELINES.keys() - {"value"}))
@settings(max_examples=20, deadline=None)
@given(rewards=REWARDS)
def test_every_baseline_is_its_formula_on_each_response(baseline, rewards):
    expected = [r - b for r, b in zip(rewards, slow(rewards, baseline), strict=True)]
    torch.testing.assert_close(of(rewards, baseline), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_without_a_baseline_the_reward_is_the_advantage():
    assert of([1.0, 0.25, -2.0], "none").tolist() == [1.0, 0.25, -2.0]


@settings(max_examples=40, deadline=None)
@given(rewards=REWARDS)
def test_the_group_mean_shrinks_leave_one_out_by_one_over_the_group(rewards):
    size = len(rewards)
    scaled = (1 - 1 / size) * of(rewards, "leave_one_out")
    torch.testing.assert_close(of(rewards, "group_mean"), scaled, rtol=0, atol=1e-12)


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
def test_the_spread_is_that_of_a_sample(same, baseline):
    rewards = [1.0, 0.0, 0.0, 0.5]
    spread = statistics.stdev(rewards) + STD_EPSILON
    same(of(rewards, baseline, std=True), (of(rewards, baseline) / spread).tolist())


@pytest.mark.parametrize("std", [False, True])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 0.1, 10.1])
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
def test_a_group_that_agrees_has_no_advantage(std, value, baseline):
    assert of([value] * 6, baseline, std).tolist() == [0.0] * 6
    single = advantage(torch.full((16,), value, dtype=torch.float32), Advantage(baseline=baseline, std=std))
    assert single.tolist() == [0.0] * 16


def test_a_shift_of_all_rewards_changes_nothing():
    shifted = of([3.0, 2.0, 2.5], "group_mean", std=True)
    torch.testing.assert_close(shifted, of([1.0, 0.0, 0.5], "group_mean", std=True), rtol=1e-12, atol=0)


def test_groups_do_not_see_each_other(same):
    rewards = torch.tensor([[1.0, 0.0, 0.0], [5.0, 5.0, 8.0]], dtype=torch.float64)
    rule = Advantage(baseline="group_mean", std=True)
    same(advantage(rewards, rule), torch.stack([advantage(row, rule) for row in rewards]))


def scale_of(rewards, lengths, **keys):
    rewards, size = torch.tensor(rewards, dtype=torch.float64), len(rewards)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    rule = Advantage(**keys)
    a = advantage(rewards.view(-1, 2 if rule.over_group else size), rule).flatten()
    return a.tolist(), scaled(a, rewards, mask, rule).tolist()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 6)), min_size=2, max_size=8).filter(lambda x: len(x) % 2 == 0)
)
def test_a_whitened_batch_has_mean_0_and_spread_1_over_its_tokens(pairs):
    rewards, lengths = zip(*pairs, strict=True)
    for baseline in ("none", "group_mean"):
        a, found = scale_of(rewards, lengths, baseline=baseline, scale="whiten")
        each = [x for x, n in zip(a, lengths, strict=True) for _ in range(n)]
        spread = (statistics.variance(each) + 1e-8) ** 0.5
        expected = [(x - statistics.fmean(each)) / spread for x in a]
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-7)


def test_the_batch_s_standard_deviation_is_that_of_its_rewards():
    a, found = scale_of([1.0, 0.0, 0.5, 0.5], [1, 2, 3, 4], baseline="group_mean", scale="batch_std")
    assert found == pytest.approx([x / (statistics.stdev([1.0, 0.0, 0.5, 0.5]) + STD_EPSILON) for x in a])


def test_advantages_of_tokens_are_whitened_over_their_tokens_and_0_elsewhere():
    a = torch.tensor([[9.0, 1.0, 2.0], [3.0, 9.0, 6.0]], dtype=torch.float64)
    mask = torch.tensor([[False, True, True], [True, False, True]])
    found = scaled(a, torch.zeros(2), mask, Advantage(baseline="value", scale="whiten"))
    values = [1.0, 2.0, 3.0, 6.0]
    spread = (statistics.variance(values) + 1e-8) ** 0.5
    assert found[mask].tolist() == pytest.approx([(x - 3.0) / spread for x in values])
    assert (found[~mask] == 0).all()


@pytest.mark.parametrize("scale", ["batch_std", "whiten"])
def test_a_batch_that_agrees_has_no_advantage_left_to_scale(scale):
    assert scale_of([0.5] * 4, [2, 1, 3, 2], baseline="group_mean", scale=scale)[1] == [0.0] * 4
    single = scaled(torch.zeros(1), torch.zeros(1), torch.ones(1, 1).bool(), Advantage(scale=scale))
    assert single.tolist() == [0.0]


def test_a_group_that_agrees_takes_no_sign_from_the_rounding_of_a_mean():
    rewards = [0.1, 0.7, 0.3, 0.1, 0.7, 0.9, 0.2, 0.2]
    a, found = scale_of(rewards, [3] * 8, baseline="group_mean", scale="whiten")
    assert a[-2:] == found[-2:] == [0.0, 0.0]


@pytest.mark.parametrize("scale", ["batch_std", "whiten"])
def test_batches_do_not_scale_each_other(same, scale):
    g = torch.Generator().manual_seed(3)
    rewards, mask = torch.rand(3, 6, generator=g).double(), torch.rand(3, 6, 4, generator=g) < 0.7
    rule = Advantage(baseline="none", scale=scale)
    apart = torch.stack([scaled(r, r, m, rule) for r, m in zip(rewards, mask, strict=True)])
    same(scaled(rewards, rewards, mask, rule), apart)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("baseline", ["none", "group_mean"])
def test_a_reward_that_is_no_number_is_refused(bad, baseline):
    with pytest.raises(DataError, match=rf"`rewards` must be finite, got 1 that is not, the first {bad:g} at \[1\]"):
        of([0.0, bad], baseline)


@pytest.mark.parametrize("std", [False, True])
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
def test_a_group_of_one_has_no_advantage(std, baseline):
    assert of([3.0], baseline, std).tolist() == [0.0]
    assert advantage(torch.tensor([[1.0], [0.0]]), Advantage(baseline=baseline, std=std)).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("std", [False, True])
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float16, torch.bfloat16])
def test_rewards_of_any_dtype_earn_what_they_earn_as_float32(dtype, std, baseline):
    rewards, rule = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0]), Advantage(baseline=baseline, std=std)
    found = advantage(rewards.to(dtype), rule)
    assert found.dtype is torch.float32
    assert torch.equal(found, advantage(rewards, rule))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4), ()])
def test_an_empty_group_is_one_line(shape):
    with pytest.raises(DataError, match=r"`rewards` must be \[..., group\] with at least one response, got \["):
        advantage(torch.zeros(shape), Advantage(baseline="group_mean"))


def test_a_spread_without_a_baseline_is_refused():
    with pytest.raises(ConfigError, match=r"advantage.std needs a group baseline, got none"):
        of([1.0, 0.0], "none", std=True)


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_rewards_whose_sum_or_spread_overflows_are_refused(kind):
    rewards = {"float32": [3e38, 3e38], "float64": [1e200, -1e200]}[kind]
    with pytest.raises(
        DataError, match=f"are too large for torch.{kind}: the sum or the spread of a group is infinite"
    ):
        advantage(torch.tensor(rewards, dtype=getattr(torch, kind)), Advantage(baseline="group_mean", std=True))


@settings(max_examples=60, deadline=None)
@given(
    rewards=st.lists(
        st.floats(-(2.0**50), 2.0**50, width=32) | st.sampled_from([0.0, 1.0, 1e-40, 0.1]), min_size=1, max_size=9
    ),
    baseline=st.sampled_from(["group_mean", "leave_one_out"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_an_advantage_over_its_spread_is_finite_and_at_most_what_a_group_allows(rewards, baseline, dtype):
    found = advantage(torch.tensor(rewards, dtype=dtype), Advantage(baseline=baseline, std=True))
    size = len(rewards)
    assert found.isfinite().all()
    # (size - 1) / sqrt(size) for the group mean, sqrt(size) without oneself; rounding of the mean adds the rest
    assert (found.abs() <= size**0.5 * (1 + 1e-5) + 1e-3).all()
