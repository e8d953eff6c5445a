"""`firstorder audit --self-test`: a short one, and the record of a whole one."""

import json
import runpy
from pathlib import Path

import pytest

from firstorder.cli.api import selftest
from firstorder.core.audit.injection import FAULTS
from firstorder.sim.trials import dump_faults

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "tests/records/self-test.json").read_text())["result"]


def test_a_short_self_test_finds_what_every_dump_shows_and_accuses_no_clean_one(monkeypatch):
    monkeypatch.setattr(selftest, "SIZES", (10_000,))
    result = selftest.self_test(clean=4, seeds=1, first=777_000)
    assert result.accused == {}
    assert result.missed == ()
    assert len(result.records()) == len(FAULTS) + len(dump_faults.FAULTS)
    assert "0 false alarms on 4 clean dumps; none missed" in str(result)


def test_the_record_is_of_the_faults_and_detectors_that_there_are():
    recorded = {row["fault"]: row["detector"] for row in RECORD["rows"]}
    assert recorded == {f.name: f.found_by for f in FAULTS} | {n: f.detector for n, f in dump_faults.FAULTS.items()}


def test_the_record_accuses_one_clean_dump_in_a_thousand_and_catches_what_dumps_show_in_nine_of_ten():
    # the aim is none, and all of them; the page says by how much it is missed
    assert RECORD["clean"] >= 1000
    assert sum(RECORD["accused"].values()) <= 1
    assert all(row["at_10000"] >= 0.9 for row in RECORD["rows"] if row["detector"] and not row["extra"])


def test_the_record_adds_up():
    unsure = [row for row in RECORD["rows"] if row["detector"] and row["at_10000"] < 1]
    assert RECORD["missed"] == [row["fault"] for row in unsure if not row["extra"]]
    assert RECORD["weak"] == [row["fault"] for row in unsure if row["extra"]]
    assert all(RECORD["accused"].get(row["detector"], 0) == (row["false_alarms"] or 0) for row in RECORD["rows"])


def test_what_was_not_always_caught_is_named_as_missed_or_says_what_would_show_it():
    silent = [row["fault"] for row in RECORD["rows"] if row["enough"] is None and not row["extra"]]
    assert silent == RECORD["missed"]


def test_the_example_calls_a_run_normal_and_the_same_run_one_row_late_off_by_one(tmp_path):
    good, bad = runpy.run_path(str(ROOT / "docs/examples/audit.py"))["verdicts"](tmp_path)
    assert good.startswith("Normal: 64 responses")
    assert bad.startswith("Off by one: log-probs of the rollout fit better 1 position earlier")


@pytest.mark.parametrize("column", ["fault", "detector", "at_10000", "false_alarms"])
def test_every_row_of_the_record_has_its_columns(column):
    assert all(column in row for row in RECORD["rows"])
