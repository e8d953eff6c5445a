"""The study of warnings: thresholds and their worth against plain numbers, and readings against the alarms of a run."""

import json
import math
import re

import pytest
import torch

from firstorder.core.method.recipe import Recipe
from firstorder.core.runs import alarm_table
from firstorder.core.runs.alarm import fired
from firstorder.core.runs.alarm_table import HeldOut, Interval, Quartiles, Threshold
from firstorder.core.settings import toml
from firstorder.sim.studies import foresight, warnings
from firstorder.sim.studies.candidates import CANDIDATES, Candidate
from firstorder.sim.studies.foresight import Observed
from firstorder.sim.studies.study import Plan
from firstorder.sim.studies.warnings import Runs
from firstorder.sim.trials.long import LongCondition

SHARE = Interval(value=0.5, low=0.0, high=1.0)
HELD_OUT = HeldOut(
    auc=SHARE,
    hits=SHARE,
    false_alarms=SHARE,
    precision=SHARE,
    lead=Quartiles(low=1, median=2, high=3),
    collapsed=1,
    stable=1,
)


def observed(scores, onset, features=None, seeds=None, conditions=None):
    scores = torch.as_tensor(scores, dtype=torch.float64)
    runs = len(scores)
    return Observed(
        scores=scores,
        onset=torch.as_tensor(onset),
        features=torch.zeros(runs, 3, dtype=torch.float64) if features is None else features,
        seeds=torch.arange(runs) if seeds is None else torch.as_tensor(seeds),
        conditions=torch.zeros(runs, dtype=torch.long) if conditions is None else torch.as_tensor(conditions),
    )


def test_a_threshold_is_what_one_stable_run_in_twenty_goes_beyond():
    peaks = torch.arange(99.0, dtype=torch.float64)
    runs = observed(torch.stack([peaks, peaks - 1], dim=-1), [-1] * 99)
    assert foresight.fit(runs).constant == 94.0  # the 95th of 100 ranks
    assert foresight.fit(runs.of(torch.arange(4))).constant == 3.0
    collapsed = observed(torch.full((3, 2), 1e9), [4, 4, 8])
    assert foresight.fit(collapsed) is None


def test_a_threshold_follows_what_stable_runs_follow():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(400, 1, generator=generator, dtype=torch.float64)
    law = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    runs = observed(1.0 + (features @ law)[:, None] + noise, [-1] * 400, features)
    fitted = foresight.fit(runs)
    assert fitted.coefficients.tolist() == pytest.approx(
        law.tolist(), abs=0.15
    )  # three standard errors of 1 / sqrt(400)
    beyond = runs.scores[:, 0] > fitted.at(runs.features)
    assert int(beyond.sum()) == 400 - math.ceil(0.95 * 401)
    low = fitted.threshold("low")
    assert [low.constant, low.length] == [-fitted.constant, -float(fitted.coefficients[0])]


def test_a_run_is_judged_by_the_runs_of_other_folds_alone():
    scores = torch.tensor([[1.0], [2.0], [10.0], [20.0]], dtype=torch.float64)
    e = foresight.excess(observed(scores, [-1] * 4), torch.tensor([0, 0, 1, 1]))
    assert e[:, 0].tolist() == [1 - 20, 2 - 20, 10 - 2, 20 - 2]
    assert foresight.excess(observed(scores, [-1, -1, 4, 4]), torch.tensor([0, 0, 1, 1])) is None


def test_hits_leads_and_false_alarms_by_hand():
    e = torch.full((5, 12), -1.0, dtype=torch.float64)
    e[0, 3:] = 1.0  # warns after 4 updates, lost at 8
    e[1, 8:] = 1.0  # after 9, lost at 8: too late
    e[2, 11] = 1.0  # a false alarm
    known = foresight.foreseen(observed(e, [8, 8, -1, -1, -1]), e)
    assert (known.hits.value, known.false_alarms.value, known.precision.value) == (0.5, 1 / 3, 0.5)
    assert (known.lead.low, known.lead.median, known.lead.high) == (4.0, 4.0, 4.0)
    assert (known.collapsed, known.stable) == (2, 3)
    assert known.hits.low < 0.1
    assert known.hits.high > 0.9


def test_the_auc_is_that_of_pairs_at_the_same_update():
    generator = torch.Generator().manual_seed(2)
    e = torch.randn(30, 16, generator=generator, dtype=torch.float64).round(decimals=1)  # with ties
    onset = torch.where(torch.arange(30) < 10, 8 + 4 * (torch.arange(30) % 3), -1)
    conditions = torch.arange(30) % 2
    runs = observed(e, onset, conditions=conditions)
    for strata, found in ((False, foresight.foreseen(runs, e).auc), (True, foresight.foreseen(runs, e).within)):
        pairs = [(i, j) for i in range(10) for j in range(10, 30) if not strata or i % 2 == j % 2]
        at = [(float(e[i, onset[i] - 5]), float(e[j, onset[i] - 5])) for i, j in pairs]
        assert found.value == pytest.approx(sum((a > b) + 0.5 * (a == b) for a, b in at) / len(at), rel=1e-12)
        assert found.low < found.value < found.high


def test_a_collapse_before_anything_could_be_read_is_missed_and_in_no_pair():
    e = torch.tensor([[torch.nan, 1.0], [torch.nan, 1.0]], dtype=torch.float64).repeat(1, 4)
    runs = observed(e, [4, -1])
    assert foresight.foreseen(runs, e) is None  # nothing is read at update 0
    e[:, 0] = torch.tensor([1.0, 0.0])
    assert foresight.foreseen(observed(e, [5, -1]), e).auc.value == 1.0


def lines(steps, minibatches, seed, sparse=False):
    """A history of three members; `x` is logged at every third step only where it is sparse."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        drawn = torch.randn(3, generator=generator).double()
        line = {
            "step": step,
            "response_length": [100.0, 200.0, 300.0],
            "update/entropy": [0.5, 0.4, 0.3],
            "k3_kl": [0.1, 0.1, 0.1],
            "y": (drawn.exp() + 1).tolist(),
        }
        yield line if sparse and step % 3 else line | {"x": drawn.exp().tolist()}


@pytest.mark.parametrize("of", ["level", "size", "change", "slope"])
@pytest.mark.parametrize(
    ("minibatches", "per", "side", "sparse"),
    [(1, None, "high", False), (4, "y", "low", False), (1, "y", "high", True), (4, None, "low", True)],
)
def test_the_study_reads_what_the_alarm_of_a_run_reads(of, minibatches, per, side, sparse):
    reads = Candidate(
        quantity="x", per=per, of=of, side=side, scale="linear" if of == "slope" else "log", points="step"
    )
    history = list(lines(24, minibatches, 3, sparse))
    runs = Runs(
        condition=LongCondition(minibatches=minibatches, updates=24 * minibatches),
        recipe="minirl",
        place=0,
        lines=history,
        onset=torch.full((3,), -1),
        seeds=torch.arange(3),
    )
    read = warnings.readings(runs, reads)
    known = read[~read.isnan()]
    if not len(known):
        assert (of, sparse, minibatches) == ("slope", True, 4)  # three steps hold no three values
        return
    for quantile in (0.1, 0.5, 0.9):
        limit = float(known.quantile(quantile)) + 1e-9
        constant = limit if reads.scale == "linear" else math.log(limit)
        alarm = reads.alarm(Threshold(constant=constant), HELD_OUT)
        beyond = alarm.beyond(read, torch.tensor(limit, dtype=torch.float64))
        expected = {
            (member, int(beyond[member].int().argmax()) // minibatches) for member in range(3) if beyond[member].any()
        }
        first = {}
        for each in fired(history, table(alarm), minibatches):
            first.setdefault(each.member, each.since)
        assert set(first.items()) == expected


def table(*alarms):
    wide = {"low": 0.0, "high": 1e9}
    tree = {
        "schema": alarm_table.SCHEMA,
        "false_alarms": 0.05,
        "regime": dict.fromkeys(("response_length", "minibatches", "entropy", "k3_kl"), wide),
        "fit": {"version": "0", "seeds": (0, 1), "updates": 8, "conditions": (), "rule": "", "standing": ""},
        "alarms": alarms,
    }
    return alarm_table.Table.model_validate(tree)


def test_a_collapse_may_lose_what_a_run_begins_with():
    where = LongCondition(value=0.5, minibatches=2)
    history = [{"step": step, "exact/j_pi": [0.6, 0.2, 0.4]} for step in (1, 3)]
    history += [{"step": step, "exact/j_pi": [0.2, 0.2, 0.4]} for step in (4, 5, 7, 9)] + [{"step": 6}]
    history.sort(key=lambda line: line["step"])
    assert warnings.collapse(history, where).tolist() == [10, 4, -1]


def short(horizon, noise, lr):
    return LongCondition(
        horizon=horizon,
        noise=noise,
        lr=lr,
        updates=32,
        problems=2,
        sampled=True,
        sim=(("evaluate_every", 4), ("checkpoint_every", 32), ("positions", 2), ("width", 8), ("coldstart_steps", 60)),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Short runs of which some are lost and others not."""
    lost = short(8, 0.5, 0.3)
    design = {short(8, 0.1, 0.002): ("minirl",), lost: ("minirl-no-is",), short(16, 0.1, 0.005): ("minirl",)}
    return warnings.collected(design, Plan(folder=tmp_path_factory.mktemp("runs"), seeds=range(500, 506), quick=True))


def test_an_entry_of_a_table_is_made_of_runs_and_warns_in_those_that_it_was_judged_by(runs):
    reads = next(each for each in CANDIDATES if each.name == "change of update/entropy low")
    seen = warnings.observed(runs, reads)
    assert 0 < int(seen.stable.sum()) < len(seen.onset)
    found = warnings.judged(runs, reads)
    made = warnings.table(runs, [found], "of a test")
    again = alarm_table.parse(json.dumps(made), "made")
    assert again.fit.seeds == (500, 505)
    alarm = reads.alarm(found.fitted.threshold("low"), found.conditions)
    assert [each.name for each in again.alarms] == ([alarm.name] if found.passes else [])
    beyond = (seen.scores > found.fitted.at(seen.features)[:, None]).any(-1)
    warned = [
        member in {each.member for each in fired(cell.lines, again.model_copy(update={"alarms": (alarm,)}), 1)}
        for cell in runs
        for member in range(len(cell.seeds))
    ]
    assert warned == beyond.tolist()
    assert int((beyond & seen.stable).sum()) <= 1


def test_what_is_not_logged_warns_of_nothing(runs):
    reads = Candidate(quantity="nothing", per=None, of="level", side="high", scale="log", points="step")
    found = warnings.judged(runs, reads)
    assert not found.passes
    assert found.row()["auc"] is None


def test_only_what_passes_the_rule_becomes_an_alarm_and_each_quantity_once(runs):
    good = {"value": 0.9, "low": 0.8, "high": 0.95}
    rare = {"value": 0.05, "low": 0.01, "high": 0.1}

    def judged(name, **changes):
        reads = next(each for each in CANDIDATES if each.name == name)
        base = HELD_OUT.model_dump() | {"auc": good, "hits": good, "false_alarms": rare} | changes
        known, fitted = HeldOut.model_validate(base), foresight.Fitted(constant=0.0, coefficients=torch.zeros(3))
        return warnings.Judged(reads=reads, seeds=known, conditions=known, fitted=fitted)

    better = judged("change of k3_kl high", auc=good | {"low": 0.85})
    found = [
        judged("k3_kl high"),
        better,
        judged("kl high", auc=good | {"low": 0.69}),
        judged("chi2_seq high", hits={"value": 0.29, "low": 0.2, "high": 0.4}),
        judged("ppl_ratio high", false_alarms={"value": 0.2, "low": 0.1, "high": 0.3}),
    ]
    assert warnings.chosen(found) == [better]
    assert [each["name"] for each in warnings.table(runs, found, "")["alarms"]] == [better.reads.name]


def test_candidates_are_told_apart_and_say_what_to_change():
    assert len({each.name for each in CANDIDATES}) == len(CANDIDATES)
    for each in CANDIDATES:
        alarm = each.alarm(Threshold(constant=0.0), HELD_OUT)
        assert alarm.cause
        settings = re.findall(r"(\w+\.\w+)(?: = ([\w/]+))?", alarm.remedy)
        assert settings
        for key, value in settings:
            tree = toml.read("minirl")
            section, name = key.split(".")
            assert name in Recipe.model_fields[section].annotation.model_fields
            if value:
                toml.build(Recipe, toml.overlay(tree, {section: {name: value}}))
