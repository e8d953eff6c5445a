"""The page of a run that collapsed: its arrows lead to what is there, and its numbers are those of the records."""

import json
import re
from pathlib import Path

import pytest
import typer.main

import answers
import decision
import tables
from firstorder.cli.main import app
from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import build, read, shipped
from firstorder.sim.claims import CLAIMS
from firstorder.sim.claims.training import TRAINING

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/collapse.md").read_text()
STUDIES = {
    *re.findall(r"^## .* \{#(causes|warnings)\}$", PAGE, flags=re.MULTILINE),
    *re.findall(r"^## (\w+)$", (ROOT / "docs/studies.md").read_text(), flags=re.MULTILINE),
}
BRANCHES = [branch for symptom in decision.SYMPTOMS for branch in symptom.branches]
BEHIND = "run `make docs-tables`"


def record(name):
    return json.loads((ROOT / f"tests/records/{name}.json").read_text())


@pytest.mark.parametrize("symptom", decision.SYMPTOMS, ids=lambda symptom: symptom.seen)
def test_the_numbers_to_look_at_are_logged(symptom):
    logged = {name for group in ("batch", "routes", "receipts", "inert") for name in tables.groups()[group]}
    assert set(symptom.numbers) <= logged


@pytest.mark.parametrize("branch", BRANCHES, ids=lambda branch: branch.cause)
def test_an_arrow_leads_to_a_setting_that_is_there(branch):
    if "=" in branch.remedy:
        key, value = branch.remedy.split("=")
        section, field = key.split(".")
        tree = read("minirl")
        assert build(Recipe, {**tree, section: {**tree.get(section, {}), field: value}})
    for section, field in re.findall(r"\b(\w+)\.(\w+)", branch.remedy):
        assert field in tables.SECTIONS[section].model_fields


@pytest.mark.parametrize("branch", BRANCHES, ids=lambda branch: branch.cause)
def test_what_backs_an_arrow_is_there_and_so_is_what_shows_it(branch):
    claims, commands = {claim.id for claim in (*CLAIMS, *TRAINING)}, typer.main.get_command(app).commands
    assert branch.evidence
    for kind, name in map(str.split, branch.evidence):
        assert name in (claims if kind == "claim" else STUDIES)
    program, command, *words = branch.command.split()
    assert (program, command in commands) == ("firstorder", True)
    if command in ("measure", "train"):
        assert words[0] in shipped() or (ROOT / words[0]).is_file()


@pytest.mark.parametrize("name", ["causes", "warnings", "regimes"])
def test_a_study_without_a_record_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "FOLDER", tmp_path)
    assert getattr(answers, name)() == f"Not recorded yet: `firstorder study {name}` answers it."


def written(folder, name, rows, measured):
    (folder / f"{name}.json").write_text(json.dumps({"rows": rows, "measured": measured}))


def test_the_causes_are_those_of_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "FOLDER", tmp_path)
    run = {"condition": "no IS", "recipe": "minirl-no-is", "j_pi": 0.212, "j_pi_low": 0.1, "j_pi_high": 0.3}
    itself = run | dict.fromkeys(("suspect", "removal", "share", "share_low", "share_high", "verdict"))
    part = {"suspect": "bias", "removal": "token ratio", "share": 0.98, "share_low": 0.9, "share_high": 1.04}
    claim = {"suspect": "bias", "claim": "weights that are biased", "answer": "holds"}
    behind = {"value": 0.03, "low": 0.01, "high": 0.2}
    rises = [{"condition": "no IS", "recipe": "minirl-no-is", "behind": behind, "holds": None}]
    rises.append(rises[0] | {"value": 0.4, "low": 0.3, "high": 0.5, "holds": True})
    measured = {"claims": [claim], "deployed": {"runs": rises}}
    written(tmp_path, "causes", [itself, run | part | {"verdict": "cause"}], measured)
    assert answers.causes().splitlines()[2:] == [
        "| no IS | nothing | `minirl-no-is` | 0.21 [0.10, 0.30] |  |  |",
        "| no IS | bias: token ratio | `minirl-no-is` | 0.21 [0.10, 0.30] | 0.98 [0.90, 1.04] | cause |",
    ]
    assert answers.claims().splitlines()[2:] == ["| weights that are biased | holds |"]
    assert answers.deployed().splitlines()[2:] == [
        "| no IS | `minirl-no-is` | 0.03 [0.01, 0.20] |  | open |",
        "| no IS | `minirl-no-is` | 0.03 [0.01, 0.20] | 0.40 [0.30, 0.50] | holds |",
    ]


@pytest.mark.parametrize(("passes", "shown"), [([True, False], 1), ([False, False], 2)])
def test_the_warnings_are_the_alarms_or_what_came_nearest(passes, shown, tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "FOLDER", tmp_path)
    known = {f"{name}{end}": 0.8 for name in ("auc", "hits", "false_alarms", "lead") for end in ("", "_low", "_high")}
    rows = [known | {"quantity": f"kl {i}", "alarm": alarm} for i, alarm in enumerate(passes)]
    alarms = [{"name": row["quantity"], "cause": "the engines"} for row in rows if row["alarm"]]
    written(tmp_path, "warnings", rows, {"table": {"alarms": alarms}})
    lines = answers.warnings().splitlines()[2:]
    assert len(lines) == shown
    assert lines[0].endswith("| the engines |" if passes[0] else "| no alarm |")
    assert lines[0].startswith("| `kl 0` | 0.80 [0.80, 0.80] |")


def test_the_regimes_say_on_which_side_of_a_border_a_finding_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "FOLDER", tmp_path)
    row = {"finding": "collapse", "axis": "horizon", "low": 32.0, "high": 2048.0, "holds": None}
    border = {"border": 300.0, "below": 256.0, "above": 362.0}
    none = dict.fromkeys(border) | {"holds_above": None}
    rows = [
        row | border | {"holds_above": True},
        row | border | {"holds_above": False},
        row | none | {"holds": True},
        row | none | {"holds": False},
    ]
    written(tmp_path, "regimes", rows, {})
    sides = [line.split(" | ")[-1].removesuffix(" |") for line in answers.regimes().splitlines()[2:]]
    assert sides == [
        "above a border between 256 and 362",
        "below a border between 256 and 362",
        "everywhere",
        "nowhere",
    ]


def test_the_readme_gives_the_numbers_of_the_record():
    collapse, cured = (run["j"] for run in record("mismatch")["runs"])
    said = f"J {collapse[0]:.2f} to {collapse[-1]:.2f}; with --set ratio.of=theta/mu to {cured[-1]:.2f}"
    assert said in (ROOT / "README.md").read_text()
