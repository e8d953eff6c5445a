"""What the command line says: help texts in whole words, and advice that the command can take."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import typer

from firstorder.cli.api.probe import COLUMNS, ProbeResult
from firstorder.cli.api.validate import cautions
from firstorder.cli.main import app, run
from firstorder.sim.claims.training import predictors

ROOT = Path(__file__).parents[2]
COMMANDS = typer.main.get_command(app).commands
OPTIONS = {name: {word for each in command.params for word in each.opts} for name, command in COMMANDS.items()}
EVERYWHERE = set.union(*OPTIONS.values(), {"--help", "--version"})
OTHERS = {"--nproc-per-node", "--no-python", "--flags", "--any-model", "--gpus", "--no-install-recommends"} | {
    *("--save-debug-rollout-data", "--save-debug-train-data", "--dump-details"),  # slime and miles
}  # of other programs
NAMED = {"report": {"--training"}, "keys": {"--set"}}  # options of other commands that a command speaks of
# modules whose words are heard under some commands alone; every other advice must hold under one command at least
HEARD = {
    "core/runs/folder.py": ("train", "sweep"),
    "core/runs/track.py": ("train",),
    "backends/coldstart.py": ("coldstart",),
}


def strings(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def mentioned():
    for folder in ("core", "sim", "backends", "cli"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if file.is_relative_to(ROOT / "backends/vllm") or file.name == "preflight.py":
                continue  # they name the options of vLLM, and a bundle's script its own
            words = {word for text in strings(file) for word in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)}
            yield from ((str(file.relative_to(ROOT)), word) for word in sorted(words))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_word_of_a_help_text_survives_its_rendering(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run([name, "--help"]) == 0
    shown = re.sub(r"[\s│]+", "", capsys.readouterr().out)
    for text in [COMMANDS[name].help, *(each.help for each in COMMANDS[name].params if getattr(each, "help", None))]:
        assert re.sub(r"\s+", "", text) in shown


def test_every_option_that_is_advised_exists_where_it_is_heard():
    found = list(mentioned())
    assert len(found) > 20
    for module, word in found:
        if module.startswith("cli/") and (name := Path(module).stem) in OPTIONS:
            known = OPTIONS[name] | NAMED.get(name, set())
        elif module in HEARD:
            known = set.intersection(*(OPTIONS[each] for each in HEARD[module]))
        else:
            known = EVERYWHERE | OTHERS
        assert word in known, f"{module} advises {word}"


def test_a_folder_is_called_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert run(["measure", "run"]) == 2
    assert "'run' is a folder and a recipe is a file; give a file in it" in capsys.readouterr().err


def test_quick_verdicts_on_flips_carry_their_caution():
    claim = {"id": "flips-value-order", "verdict": "reproduced", "measured": {"members_with_flips": [0.9, 0.08]}}
    (line,) = cautions({"quick": True, "claims": [claim, {"id": "baseline"}]})
    assert "8% of the members flip" in line
    assert "settle it without --quick" in line
    assert cautions({"quick": False, "claims": [claim]}) == []


def test_an_area_that_cannot_be_formed_is_not_a_number_in_the_headline(monkeypatch):
    assert np.isnan(predictors.area(np.ones(4), np.zeros(4)))
    text = predictors.headline({"collapsed": 0, "runs": 8}, float("nan"), float("nan"), "kl")
    assert text == "no area: held-out runs must both collapse and stand; 0 of 8 collapsed"
    assert "nan" not in text
    assert predictors.headline({"collapsed": 1, "runs": 8}, 0.5, 0.25, "kl") == (
        "area 0.5 against 0.25 of kl, 1 of 8 collapsed"
    )


@pytest.mark.parametrize("columns", [80, 240])
def test_a_table_of_a_probe_survives_a_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    row = {"point": {"vllm.dtype": "bfloat16"}, "reward": 0.123456}
    document = {"model": "small", "prompts": 1, "responses": 1, "grid": {"vllm.dtype": []}, "result": [row]}
    ProbeResult(document=document, points=[row]).print()
    out = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert all(len(line) <= columns for line in out.splitlines())
    for head in ("vllm.dtype", *COLUMNS):
        assert head in out
    assert "0.123" in out
    assert "…" not in out
