"""What the pages say about numbers and names is what the code says."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.vllm.config import Vllm
from firstorder.cli.main import run
from firstorder.core.recipe import Recipe
from firstorder.core.toml import build, read, shipped
from firstorder.sim.claims import CLAIMS
from firstorder.sim.config import Sim
from firstorder.sim.numerics import Numerics

ROOT = Path(__file__).parents[1]
RECORD = json.loads((ROOT / "tests/records/validate.json").read_text())


def page(name):
    return (ROOT / "docs" / f"{name}.md").read_text()


def test_the_verdicts_on_the_page_are_those_of_the_record():
    spec = importlib.util.spec_from_file_location("results", ROOT / "docs/results.py")
    results = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(results)
    assert results.filled(page("validate"), RECORD) == page("validate")


def test_the_record_holds_every_claim_with_its_rule():
    assert [(c["id"], c["rule"], c["statement"]) for c in RECORD["claims"]] == [
        (c.id, c.rule, c.statement) for c in CLAIMS
    ]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.id)
def test_every_claim_has_its_section(claim):
    assert f"### {claim.id}" in page("validate")
    assert claim.rule in page("validate")


@pytest.mark.parametrize("name", shipped())
def test_every_recipe_is_in_the_table(name):
    assert f"`{name}`" in page("recipes")
    assert build(Recipe, read(name)).about.summary


@pytest.mark.parametrize("model", [Sim, Numerics])
def test_every_key_of_the_simulator_is_documented(model):
    tables = page("measure") + page("train")
    assert [key for key in model.model_fields if not re.search(rf"\|[^|]*`{key}`[^|]*\|", tables)] == []


@pytest.mark.parametrize("model", [Torchtitan, Vllm])
def test_every_key_of_the_engines_is_documented(model):
    table = re.split(r"^Of `\[", page("engines"), flags=re.MULTILINE)
    section = next(part for part in table if part.startswith(model.__name__.lower()))
    rows = re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
    assert rows == list(model.model_fields)


def shown_on_the_tour():
    """The tables of `firstorder measure` on the first page: arguments, and the numbers shown under them."""
    for block in re.findall(r"```console\n\$ firstorder (measure [^\n]*)\n(.*?)```", page("index"), flags=re.DOTALL):
        rows = re.findall(r"^ (\w+) +(-?[\d.e+-]+)  ", block[1], flags=re.MULTILINE)
        if rows:
            yield block[0].split(), {name: float(value) for name, value in rows}


def test_the_tour_shows_what_the_commands_print(tmp_path):
    tables = list(shown_on_the_tour())
    assert len(tables) == 2
    for arguments, numbers in tables:
        assert run([*arguments, "--json", str(tmp_path / "out.json")]) == 0
        result = json.loads((tmp_path / "out.json").read_text())["result"]
        assert {name: result[name] for name in numbers} == pytest.approx(numbers, rel=1e-4)
