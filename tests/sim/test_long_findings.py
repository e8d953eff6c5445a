import json
import re
from pathlib import Path

import pytest
import torch

from firstorder.sim.claims.training import TRAINING, long, long_findings
from firstorder.sim.claims.training.long import ahead, judged, place
from firstorder.sim.exact.scene import grow
from firstorder.sim.tasks import task_of
from firstorder.sim.trials.budget import Budget
from firstorder.sim.trials.lengths import lengths
from firstorder.sim.trials.long import LongCondition
from firstorder.sim.trials.statistics import Estimate

ROOT = Path(__file__).parents[2]
SEEDS = 8
HERE = LongCondition(value=0.5)
GOOD = [0.6, 0.7, 0.8, 0.9, 0.9, 0.9]
WORSE = [0.5, 0.6, 0.6, 0.7, 0.7, 0.7]
LOST = [0.2, 0.1, 0.1, 0.1, 0.1, 0.1]  # never above what it started with


def series(path, spread=0.01, seeds=SEEDS):
    """Runs whose J follows a path, a little apart."""
    jitter = spread * torch.linspace(-1, 1, seeds, dtype=torch.float64)[:, None]
    j = torch.tensor(path, dtype=torch.float64) + jitter
    return {"exact/j_pi": j, "kl": j, "update/entropy": 1 - j}


def cells(**paths):
    return {name.replace("_", "-"): series(path) for name, path in paths.items()}


def square(**others):
    """All six recipes of the two squares, `others` by what follows minirl in their names, the rest in between."""
    named = {name: series([0.5, 0.6, 0.7, 0.8, 0.8, 0.8]) for name in long_findings.SQUARES}
    return named | {f"minirl-{name}".replace("_", "-"): series(path) for name, path in others.items()}


@pytest.mark.parametrize(
    ("judge", "found", "expected"),
    [
        (long_findings._on_policy, cells(minirl=GOOD, minirl_r3=WORSE, minirl_no_is=LOST), True),
        (long_findings._on_policy, cells(minirl=WORSE, minirl_r3=GOOD, minirl_no_is=LOST), False),
        (long_findings._on_policy, cells(minirl=GOOD, minirl_r3=GOOD, minirl_no_is=LOST), None),
        (long_findings._no_is, cells(minirl=GOOD, minirl_no_is=LOST), True),
        (long_findings._no_is, cells(minirl=GOOD, minirl_no_is=WORSE), False),
        (long_findings._no_is, cells(minirl=LOST, minirl_no_is=LOST), None),
        (long_findings._length_norm, cells(minirl=GOOD, minirl_length_norm=WORSE), True),
        (long_findings._length_norm, cells(minirl=WORSE, minirl_length_norm=GOOD), False),
        (long_findings._length_norm, cells(minirl=GOOD, minirl_length_norm=LOST), False),
    ],
)
def test_a_judge_follows_its_rule(judge, found, expected):
    assert judge(HERE, found, SEEDS).holds is expected


@pytest.mark.parametrize(("n", "best"), [(2, "r2"), (4, "r3"), (16, "r3")])
def test_off_policy_judges_take_the_replay_of_the_schedule(n, best):
    here = HERE.but(minibatches=n)
    assert long_findings._off_policy(here, square(**{best: GOOD}), SEEDS).holds is True
    assert long_findings._off_policy(here, square(**{best: WORSE}), SEEDS).holds is False
    other = {"r2": "r3", "r3": "r2"}[best]
    assert long_findings._r2_r3(here, square(**{best: GOOD, other: WORSE}), SEEDS).holds is True
    assert long_findings._r2_r3(here, square(**{best: WORSE, other: GOOD}), SEEDS).holds is False


@pytest.mark.parametrize(
    ("stable", "unstable", "expected"),
    [
        ([0.9, 0.92, 0.95], [0.1, 0.3, 0.5], True),
        ([0.5, 0.7, 0.9], [0.1, 0.3, 0.5], False),
        ([0.9, 0.92, 0.95], [0.1, 0.12, 0.1], False),
        ([0.9, 0.92, 0.995], [0.1, 0.3, 0.5], None),
    ],
)
def test_starts_are_alike_or_apart(stable, unstable, expected):
    ends = {"minirl": stable, "minirl-no-is": unstable}
    spread = {"minirl": [0.0, 0.04, -0.04]}  # of seeds, in the same order from every start but the second
    found = {}
    for name, values in ends.items():
        for start, end, wide in zip(long_findings.STARTS, values, spread.get(name, [0.0] * 3), strict=True):
            found[long_findings._of(name, start)] = series([end] * 6, spread=wide)
    judged_ = long_findings._cold_starts(HERE, found, SEEDS)
    assert judged_.holds is expected
    assert (judged_.seeds is not None) == (expected is None)


def test_what_is_open_says_how_many_seeds_would_settle_it():
    behind, before = Estimate(value=-0.1, low=-0.3, high=0.1), Estimate(value=0.1, low=-0.1, high=0.3)
    settled, level = Estimate(value=0.2, low=0.1, high=0.3), Estimate(value=0.0, low=-0.1, high=0.1)
    assert ahead({"a": before, "b": settled}, 8).seeds == 32
    far = Estimate(value=0.1, low=-0.3, high=0.5)
    assert ahead({"a": before, "b": far}, 8).seeds == 128  # all must be above
    assert ahead({"a": far, "b": behind, "c": settled}, 8).seeds == 32  # one below is enough
    assert ahead({"a": before, "b": level}, 8).seeds is None
    assert ahead({"a": settled}, 8).seeds is None


def test_lengths_are_those_of_all_responses_and_of_a_sum_over_them():
    sim = LongCondition(
        problems=2, horizon=9, value=0.3, sim=(("ending", "answer"), ("positions", 4), ("thinking", 1))
    ).world(range(5, 7))
    mean, deviation = lengths(sim, torch.arange(5, 7))
    contexts = task_of(sim).contexts(torch.arange(2))
    draw = torch.Generator().manual_seed(0)
    probs = torch.rand(2, len(contexts.features), sim.vocab, generator=draw, dtype=torch.float64).softmax(-1)
    alive = grow(sim).by_step(probs, torch.ones(probs.shape[:2], dtype=torch.float64))[:, :3]
    first = 1 - probs[:, contexts.start, 0].mean(-1)
    second = [
        sum(
            float(probs[m, s, a] * (1 - probs[m, contexts.follow[s, a], 0])) / 2
            for s in contexts.start.tolist()
            for a in range(1, sim.vocab)
        )
        for m in range(2)
    ]
    torch.testing.assert_close(alive[:, 0], torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(alive[:, 1], first)
    torch.testing.assert_close(alive[:, 2], torch.tensor(second, dtype=torch.float64))
    assert (mean > 1).all()
    assert (mean < 9).all()
    assert (deviation > 0.5).all()


def test_a_finding_is_trained_judged_and_found_again(tmp_path):
    tiny = LongCondition(
        horizon=6, problems=1, updates=8, sim=(("positions", 2), ("coldstart_steps", 30), ("width", 8))
    )
    places = [
        place(tiny, ("minirl", "minirl-no-is")),
        place(tiny.but(noise=0.02), ("minirl", "minirl-no-is"), counts=False),
    ]
    budget = Budget(policies=4, draws=1, first_seed=0, folder=tmp_path)
    outcome = judged(places, long_findings._on_policy, budget, range(3))
    measured = outcome.measured["conditions"]
    assert list(measured) == [str(tiny), str(tiny.but(noise=0.02))]
    assert "of 1 conditions" in outcome.headline
    assert set(measured[str(tiny)]["recipes"]) == {"minirl", "minirl-no-is"}
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    assert len(stamps) == 4
    assert judged(places, long_findings._on_policy, budget, range(3)).measured == outcome.measured
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")} == stamps
    json.dumps(outcome.measured)


def test_every_run_of_every_finding_can_be_trained():
    places = [
        *(*long_findings.ON_POLICY, *long_findings.NO_IS, *long_findings.OFF_POLICY, *long_findings.REPLAYS),
        *(*long_findings.STARTED, *long_findings.IS),
        *(place(each, ("minirl", "minirl-length-norm")) for each in long_findings.LENGTHS),
    ]
    for each in places:
        for condition, name in each.runs.values():
            cell = condition.cell(name, range(2))
            assert condition.updates % (long.SHORTER * condition.minibatches) == 0 or each in long_findings.IS
            assert cell.recipe.schedule.steps * condition.minibatches == condition.updates
    assert {each.condition.minibatches for each in long_findings.OFF_POLICY} == {2, 4, 8, 16}


def test_the_verdicts_that_changes_are_checked_against_are_those_of_known_claims():
    listed = re.search(r"^training=\((.*?)\)", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE | re.DOTALL)[
        1
    ].split()
    known = [claim.id for claim in TRAINING]
    assert listed == [name for name in known if name in listed]
    left = [name for name in known if name not in listed]
    page = (ROOT / "docs/validate.md").read_text()
    assert left
    assert all(f"--only {name}" in page for name in left)
