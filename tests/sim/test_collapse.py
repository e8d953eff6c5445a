import torch
from hypothesis import given
from hypothesis import strategies as st

from firstorder.sim.trials.collapse import KEPT, LEARNT, PATIENCE, collapsed, onset


def slow(series):
    for t in range(len(series) - PATIENCE + 1):
        if all(_down(series[: u + 1]) for u in range(t, t + PATIENCE)):
            return t
    return -1


def _down(seen):
    return max(seen) >= LEARNT and seen[-1] < KEPT * max(seen)


@given(st.lists(st.lists(st.floats(0, 1), min_size=12, max_size=12), min_size=1, max_size=4))
def test_the_onset_of_many_runs_is_that_of_each_alone(runs):
    assert onset(torch.tensor(runs, dtype=torch.float64)).tolist() == [slow(run) for run in runs]


def test_a_run_that_never_learnt_cannot_collapse():
    assert not collapsed(torch.tensor([0.1, 0.15, 0.1, 0.0, 0.0, 0.0]))


def test_a_dip_that_recovers_is_no_collapse():
    assert not collapsed(torch.tensor([0.1, 0.9, 0.2, 0.2, 0.8, 0.2, 0.2, 0.9]))


def test_three_evaluations_below_half_of_the_best_are_a_collapse():
    assert onset(torch.tensor([[0.1, 0.9, 0.4, 0.4, 0.4], [0.1, 0.9, 0.6, 0.6, 0.6]])).tolist() == [2, -1]


def test_a_run_too_short_to_judge_did_not_collapse():
    assert onset(torch.tensor([0.1, 0.9])).tolist() == -1
