"""Every command on the pages is one that can be run, checked as far as it goes without doing its work."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main

from firstorder.backends.promote import models
from firstorder.cli.api.compose import compose, compose_engines, grid
from firstorder.cli.api.evidence import read_source
from firstorder.cli.api.keys import keys
from firstorder.cli.api.overrides import laid
from firstorder.cli.api.recipes import resolve
from firstorder.cli.examples import EXAMPLES
from firstorder.cli.main import app
from firstorder.core.settings.grid import axes, points
from firstorder.sim.claims import CLAIMS
from firstorder.sim.claims.training import TRAINING
from firstorder.sim.studies import STUDIES

COMMANDS = typer.main.get_command(app).commands
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SYNOPSIS, MADE, REFUSED = "a synopsis", "names what the page makes before it", "shows how a mistake is refused"
EXCEPTIONS = {
    "firstorder measure RECIPE [--set A.B=V ...] [--split] [--json FILE] [--strict]": SYNOPSIS,
    "firstorder validate [--training] [--quick] [--only ID ...] [--expect FILE] [--json FILE]": SYNOPSIS,
    "firstorder measure minirl --set clip.hihg=0.3": REFUSED,
    "firstorder measure minirl-root": MADE,
    "firstorder measure minirl-r3 --set sim.task=count --set sim.coldstart=terse --set schedule.group_size=8": MADE,
    "firstorder measure minirl --set sim.router=softmax_raw": MADE,
    "firstorder measure minirl --set sim.numerics.kind=router_bf16": MADE,
    "firstorder promote runs/r3 --world 64 --gpu h200 --match runs/short --set task.kind=reasoning-gym"
    " --out bundle": MADE,
}
FAST = {"recipes", "measure"}  # commands of ours that take seconds
OTHERS = {"pip", "pytest", "tensorboard", "vllm"}  # programs that are not ours


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A command line of a page: its commands, which `&&` joins, without quotes and redirection; and its comment."""

    page: str
    commands: tuple[tuple[str, ...], ...]
    comment: str


def blocks(text: str) -> list[str]:
    """The command lines of all fenced blocks, continued lines joined; the output of a console is left out."""
    found = []
    for fence in re.finditer(r"^( *)```(sh|bash|shell|console)\n(.*?)^\1```", text, flags=re.MULTILINE | re.DOTALL):
        lines = [line.strip() for line in fence[3].replace("\\\n", " ").splitlines()]
        found += lines if fence[2] != "console" else [line[2:] for line in lines if line.startswith("$ ")]
    return [line for line in found if line and not line.startswith("#")]


def parsed(page: str, line: str) -> Shown:
    commands: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word == "&&":
            commands.append([])
        elif word != "&":
            commands[-1].append(word)
    cut = [tuple(each[: each.index(">")] if ">" in each else each) for each in commands]
    return Shown(page=page, commands=tuple(cut), comment=line.rpartition(" # ")[2] if " # " in line else "")


def of(path: Path) -> list[Shown]:
    return [parsed(path.name, line) for line in blocks(path.read_text())]


ALL = [(shown.page, command) for path in PAGES for shown in of(path) for command in shown.commands]
CHECKED = [each for each in dict.fromkeys(ALL) if " ".join(each[1]) not in EXCEPTIONS]


def check_program(name: str, arguments: tuple[str, ...]) -> None:
    """Check a command of ours; any part that is unknown or refused raises."""
    given = COMMANDS[name].make_context(name, list(arguments)).params
    set_ = given.get("set_", [])
    match name:
        case "train" if given["backend"] == "torchtitan":
            compose_engines(given["recipe"], set_, given["settings"])
        case "train" | "measure":
            assert given.get("backend", "sim") == "sim"
            compose(given["recipe"], set_, given.get("settings"))
        case "resume":
            assert {word.partition("=")[0] for word in set_} <= {"schedule.steps"}
        case "sweep":
            grid(given["recipe"], set_, given["grid_"])
        case "probe":
            for point in points(axes(given["grid_"])):
                compose_engines("minirl", [*set_, *(f"{key}={value}" for key, value in point.items())])
        case "promote":
            models.engines(laid(set_), read_source(given["source"])[2])
        case "validate":
            assert set(given["only"]) <= {claim.id for claim in (TRAINING if given["training"] else CLAIMS)}
        case "recipes":
            for each in (given["name"], given["other"]):
                assert each is None or resolve(each)
        case "keys":
            assert keys(given["prefix"])
        case "study":
            assert given["name"] is None or given["name"] in {study.id for study in STUDIES}
        case _:
            assert name in ("audit", "coldstart", "doctor", "recommend", "report", "conformance", "explore")


def check(words: tuple[str, ...]) -> None:
    """Check any command; one of a program that nobody named raises."""
    program, *rest = words
    match Path(program).name, rest:
        case "firstorder", [name, *arguments]:
            check_program(name, tuple(arguments))
        case "make", [_, *_] as targets:
            known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
            assert set(targets) <= set(known)
        case "python" | "python3", ["-m", module, *_]:
            assert module == "venv" or (ROOT / "src" / (module.replace(".", "/") + ".py")).is_file()
        case "python" | "python3", [script, *_]:
            assert (ROOT / script).is_file()
        case "torchrun", options:
            check(tuple(options[options.index("--no-python") + 1 :]))
        case name, _:
            assert name in OTHERS, f"{name}: no program of ours, and not in OTHERS"


@pytest.mark.parametrize(("page", "words"), CHECKED, ids=[f"{page}: {' '.join(words)}" for page, words in CHECKED])
def test_every_command_on_a_page_can_be_run(page, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(words)


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_every_example_of_a_help_can_be_run(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in parsed("help", line).commands:
        check(words)


def test_every_exception_is_still_on_a_page():
    assert sorted(set(EXCEPTIONS) - {" ".join(words) for _, words in ALL}) == []


def test_a_command_of_the_readme_that_is_not_fast_says_how_long_it_takes():
    slow = [shown for shown in of(ROOT / "README.md") if not FAST & set(shown.commands[-1][1:2])]
    assert slow
    silent = [shown.commands[-1] for shown in slow if not re.search(r"\d s\b|\b(seconds|minutes?)\b", shown.comment)]
    assert silent == []


@pytest.mark.parametrize(
    "line",
    [
        "firstorder mesure minirl",
        "firstorder measure minirl --sett a=b",
        "firstorder measure minirl --set clip.hihg=0.3",
        "firstorder measure no-such-recipe",
        "firstorder train minirl --backend torchtitan --set sim.seed=1",
        "firstorder sweep minirl --grid optimizer.learning=0.1,0.2",
        "firstorder probe small --grid vllm.quantisation=none,fp8",
        "firstorder validate --only no-such-claim",
        "make no-such-target",
        "python docs/examples/no_such.py",
        "no-such-program",
    ],
)
def test_a_command_that_cannot_be_run_is_found(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(Exception):  # noqa: B017, PT011
        check(parsed("", line).commands[0])
