"""What became of a run: the rule of a collapse, what is worth a change, and the row of the page that it is in."""

import pytest
import torch

from firstorder.cli.report import remedies
from firstorder.cli.report.outcome import run_outcome
from firstorder.core.runs.events import Event
from firstorder.core.runs.windows import trailing
from firstorder.sim.studies.regimes import WORTH
from firstorder.sim.trials.collapse import onset

STALE = {"schedule.steps": 6, "schedule.minibatches": 4, "ratio.of": "none", "correction.kind": "none"}
FALLS = [0.1, 0.5, 0.9, 0.4, 0.3, 0.2]


def lines(values, name="exact/j_pi", **more):
    return [{"step": step, name: value} | more for step, value in enumerate(values)]


def test_a_collapse_is_that_of_the_rule_and_begins_where_the_rule_says():
    found = run_outcome(lines(FALLS), STALE)
    assert (found.state, found.since) == ("collapsed", int(onset(torch.tensor(FALLS))) + 1)
    assert (found.first, found.last, found.best, found.steps_done) == (0.1, 0.2, 0.9, (1, 6, 3))
    assert str(found).startswith("collapsed, at step 4; exact/j_pi: 0.1 at step 1, 0.2 at step 6, best 0.9 at step 3")


@pytest.mark.parametrize(
    ("last", "state"),
    [(0.5 + 1.1 * WORTH, "learned"), (0.5 + 0.9 * WORTH, "flat"), (0.5 - 0.9 * WORTH, "flat"), (0.4, "fell")],
)
def test_a_run_moves_by_what_is_worth_a_change(last, state):
    assert run_outcome(lines([0.5, last]), STALE).state == state


def test_members_are_judged_one_by_one():
    many = [[a, 0.5 + step / 10] for step, a in enumerate(FALLS)]
    found = run_outcome(lines(many), STALE)
    assert (found.state, found.members) == ("collapsed", {"collapsed": 1, "learned": 1})
    assert found.headline == "collapsed in 1 of 2 members, the first at step 4"
    found = run_outcome(lines([[*each, 0.5 + step / 10] for step, each in enumerate(many)]), STALE)
    assert found.headline == "learned in 2 of 3 members, collapsed in 1, the first at step 4"


def test_too_few_evaluations_show_no_collapse():
    assert not run_outcome(lines([0.9, 0.1]), STALE).judged
    assert run_outcome(lines([0.9, 0.1, 0.1]), STALE).judged


def test_without_an_evaluation_the_sampled_reward_is_read_in_windows():
    noisy = [0.2, 0.8] * 15
    found = run_outcome(lines(noisy, "reward"), STALE | {"schedule.steps": 30})
    assert (found.quantity, found.window) == ("reward", 3)
    assert found.last == pytest.approx((0.8 + 0.2 + 0.8) / 3)
    both = [a | b for a, b in zip(lines(noisy, "reward"), lines(noisy, "eval/reward"), strict=True)]
    assert run_outcome(both, STALE).quantity == "eval/reward"
    assert run_outcome(lines(noisy, "kl"), STALE) is None


def test_a_value_that_is_not_known_is_left_out():
    found = run_outcome(lines([None, 0.2, [0.4], None]), STALE)
    assert (found.first, found.last, found.steps_done) == (0.2, 0.4, (2, 3, 3))


def test_the_remedy_is_a_row_of_the_page():
    rows = [branch for symptom in remedies.SYMPTOMS for branch in symptom.branches]
    clipped = lines(FALLS, clip_upper=0.1)
    for config, logged, row in (
        (STALE, lines(FALLS, clip_upper=0.0), remedies.UNBOUNDED),
        (STALE, clipped, remedies.DRIFT),
        (STALE | {"clip.kind": "minirl"}, lines(FALLS, clip_upper=0.0), remedies.DRIFT),  # it has the clip already
        (STALE | {"ratio.of": "theta/old"}, clipped, remedies.DRIFT),
        (STALE | {"schedule.minibatches": 1}, lines(FALLS), remedies.DRIFT),
        (STALE | {"ratio.of": "theta/mu"}, clipped, remedies.CORRECTED),
        (STALE | {"correction.kind": "truncate", "correction.of": "old/mu"}, clipped, remedies.CORRECTED),
    ):
        assert row in rows
        assert run_outcome(logged, config).remedies == ((row.remedy, row.cause),)


def test_a_flat_run_without_a_gradient_has_no_advantage_left():
    flat = [0.5, 0.5, 0.5]
    norms = lines(flat, **{"update/grad_norm": [0.0]})
    assert run_outcome(norms, STALE).remedies == ((remedies.ALIKE.remedy, remedies.ALIKE.cause),)
    assert run_outcome(lines(flat), STALE).remedies == ((remedies.UNLEARNT.remedy, remedies.UNLEARNT.cause),)
    assert run_outcome(lines(flat), STALE | {"ratio.of": "theta/mu"}).advice == ""


def test_a_run_that_learned_is_left_alone():
    assert run_outcome(lines([0.1, 0.9]), STALE).remedies == ()


def test_the_first_alarm_is_named():
    parts = {"quantity": "kl", "members": (0,), "reading": (1.0,), "threshold": (0.5,), "fitted": True}
    events = [Event(step=s, alarm=name, event="start", **parts) for s, name in ((2, "kl high"), (4, "kl rises"))]
    assert run_outcome(lines([0.1, 0.9]), STALE, events).alarm == events[0]
    assert run_outcome(lines([0.1, 0.9]), STALE).alarm is None


def test_a_window_of_one_step_changes_nothing():
    values = torch.rand(5, 2, dtype=torch.float64)
    assert torch.equal(trailing(values, 1), values)
    assert torch.allclose(trailing(values, 9)[-1], values.mean(0))
