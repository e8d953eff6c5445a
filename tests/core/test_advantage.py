import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.advantage import STD_EPSILON, advantage
from firstorder.core.errors import DataError
from firstorder.core.recipe import Advantage

REWARDS = st.lists(st.floats(-10, 10), min_size=2, max_size=9)


def of(rewards, baseline, std=False):
    return advantage(torch.tensor(rewards, dtype=torch.float64), Advantage(baseline=baseline, std=std))


def test_without_a_baseline_the_reward_is_the_advantage():
    assert of([1.0, 0.25, -2.0], "none").tolist() == [1.0, 0.25, -2.0]


@settings(max_examples=40, deadline=None)
@given(rewards=REWARDS)
def test_the_group_mean_includes_the_response_itself(rewards):
    mean = statistics.fmean(rewards)
    torch.testing.assert_close(
        of(rewards, "group_mean"),
        torch.tensor([r - mean for r in rewards], dtype=torch.float64),
        rtol=0,
        atol=1e-12,
    )


@settings(max_examples=40, deadline=None)
@given(rewards=REWARDS)
def test_the_group_mean_shrinks_leave_one_out_by_one_over_the_group(rewards):
    size = len(rewards)
    scaled = (1 - 1 / size) * of(rewards, "leave_one_out")
    torch.testing.assert_close(of(rewards, "group_mean"), scaled, rtol=0, atol=1e-12)


def test_leave_one_out_subtracts_the_mean_of_the_others(same):
    same(of([1.0, 2.0, 6.0], "leave_one_out"), [1 - 4.0, 2 - 3.5, 6 - 1.5])


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


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("baseline", ["none", "group_mean"])
def test_a_reward_that_is_no_number_is_refused(bad, baseline):
    with pytest.raises(DataError, match="`rewards` must be finite"):
        of([0.0, bad], baseline)
