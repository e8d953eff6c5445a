"""What the pages say about numbers and names is what the code says."""

import json
import re
import runpy
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import typer.main
import yaml
from packaging.requirements import Requirement

import claimed
import generate
import rooms
import tables
from firstorder import __version__
from firstorder.cli.api.compose import compose_engines
from firstorder.cli.main import app, run
from firstorder.cli.track import SINKS
from firstorder.core.training import diagnostics
from firstorder.sim.claims import CLAIMS, FULL, identities
from firstorder.sim.claims.training import TRAINING
from firstorder.sim.config import Sim
from firstorder.sim.exact import quantities

COMMANDS = typer.main.get_command(app).commands
ROOT = Path(__file__).parents[1]
RECORDS = {name: json.loads((ROOT / f"tests/records/{name}.json").read_text()) for name in ("validate", "training")}
MADE = {"core/recipes/minirl-root.toml"}  # what docs/extend.md has its reader make
SETTLED = {"validate": CLAIMS, "training": TRAINING}


def page(name):
    return (ROOT / "docs" / f"{name}.md").read_text()


@pytest.mark.parametrize("path", generate.PAGES, ids=lambda path: path.stem)
def test_every_table_on_a_page_is_what_the_code_says(path):
    assert path.read_text() == generate.filled(path.read_text()), "run `make docs-tables`"


def test_the_picture_of_the_rooms_is_that_of_the_imports():
    assert rooms.PICTURE.read_text() == rooms.picture(), "run `make docs-tables`"


def named(text):
    """The dotted names of the package, keys of `[sim]` left out, and the paths in it, that a page sets in code."""
    names = re.findall(r"`((?:core|sim|backends|cli)\.[\w.]+)`", text)
    keys = {f"sim.{key}" for key in Sim.model_fields}
    names = [name for name in names if ".".join(name.split(".")[:2]) not in keys]
    return names, re.findall(r"`((?:core|sim|backends|cli|tests|docs)/[\w./-]*)`", text)


def resolves(name):
    """Whether a dotted name is a folder, a module or something in one; read, since no engine is installed."""
    place, parts = ROOT, name.split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    file = place / f"{parts.pop(0)}.py" if parts else place / "__init__.py"
    body = rooms.parsed(file).body if file.is_file() else None
    for part in parts:
        body = next((getattr(node, "body", []) for node in body or () if part in defined(node)), None)
    return body is not None


def defined(node):
    """The names that a statement gives a meaning to."""
    targets = getattr(node, "targets", [getattr(node, "target", node)])
    return [getattr(target, "name", getattr(target, "id", None)) for target in targets]


@pytest.mark.parametrize("path", generate.PAGES, ids=lambda path: path.stem)
def test_every_module_and_file_that_a_page_names_is_there(path):
    names, places = named(path.read_text())
    assert [name for name in names if not resolves(name)] == []
    assert [place for place in places if not (ROOT / place).exists() and place not in MADE] == []


@pytest.mark.parametrize("name", ["core.method.recipes", "core.method.recipe.Recipes", "sim.config.Sim.no_such"])
def test_a_name_that_is_not_there_is_found(name):
    assert not resolves(name)


@pytest.mark.parametrize("name", RECORDS)
def test_the_record_holds_every_claim_with_its_rule(name):
    assert [(c["id"], c["rule"], c["statement"]) for c in RECORDS[name]["claims"]] == [
        (c.id, c.rule, c.statement) for c in SETTLED[name]
    ]


def test_every_claim_has_a_page_of_its_own_and_no_other_has():
    assert {path.stem for path in claimed.pages()} == {claim.id for claim in (*CLAIMS, *TRAINING)}
    for claim in (*CLAIMS, *TRAINING):
        text = page(f"claims/{claim.id}")
        assert re.findall(r"<!-- table: (\w+) ([\w-]+)", text)[:2] == [("claim", claim.id), ("measured", claim.id)]
        assert "<!-- table: logged " in text
        assert "```text\n" in text


def test_the_citation_is_of_this_version_under_its_licence():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cited["cff-version"], cited["version"], cited["license"]) == ("1.2.0", __version__, project["license"])
    assert cited["authors"] == project["authors"]
    assert {"title", "message", "type"} <= set(cited)
    (paper,) = cited["references"]
    assert paper["url"] == "https://arxiv.org/abs/2512.01374"
    assert len(paper["authors"]) == 13


def test_the_seeds_on_a_page_are_those_that_the_claim_is_settled_on(monkeypatch):
    drawn = []
    monkeypatch.setattr(identities, "ensemble", lambda budget: drawn.append(budget) or 1 / 0)
    identities.stale_scene.cache_clear()
    with pytest.raises(ZeroDivisionError):
        identities.stale_scene(FULL)
    (budget,) = drawn
    assert f"| seeds | {budget.first_seed} to {budget.first_seed + budget.policies - 1} |" in page("claims/two-errors")


def test_every_table_that_can_be_made_stands_on_a_page():
    marked = set(re.findall(r"<!-- table: (.*) -->", "".join(path.read_text() for path in generate.PAGES)))
    marked = {name for name in marked if name.split()[0] not in ("claim", "measured", "logged", "found", "named")}
    known = {f"keys {name}" for name in tables.SECTIONS} | {f"parts {name}" for name in tables.PARTS}
    known |= {f"quantities {name}" for name in tables.groups()} | {f"options {name}" for name in COMMANDS}
    assert marked - known == {
        *("keys sim training", "recipes", "outcomes", "forms", "alarms", "samples"),
        *("verdicts validate", "verdicts training", "conditions training"),
        *("every", "unsettled not-reproduced", "unsettled inconclusive", "bibtex", "sources"),
        *("symptoms", "mismatch", "drift", "causes", "claims", "deployed", "warnings", "regimes", "findings", "alarms"),
        *("map", "anchors", "paper", "frontier", "baselines", "bounded", "thin", "replayed"),
        *("cases", "conventions", "added", "terms", "peers"),
        *("formats", "detectors", "caught"),
        *(f"rooms {name}" for name in rooms.FOLDERS),
    }
    assert known - marked == {"keys critic"}  # of which the page says that they are those of [optimizer]


def test_every_number_of_a_measurement_is_in_a_table(tmp_path):
    small = [word for size in ("vocab=3", "horizon=2", "prompts=2") for word in ("--set", f"sim.{size}")]
    assert run(["measure", "minirl-r3", *small, "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())["result"]
    nested = {"bounds", "replay_bounds", "diagnostics", "receipts", "intervals", "replay", "mask", "inert", "notes"}
    nested |= {"seconds", "terms"}
    assert sorted(set(result) - nested) == sorted(quantities.QUANTITIES)
    assert sorted(result["diagnostics"]) == sorted(diagnostics.QUANTITIES)


def test_every_extra_can_be_resolved_from_an_index_alone_and_the_sdist_names_what_is_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    for needs in (*extras.values(), project["project"]["dependencies"]):
        for need in map(Requirement, needs):
            assert need.url is None
            assert need.name != "firstorder" or need.extras <= set(extras)
    included = project["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"]
    assert all((ROOT / path).exists() for path in included)
    assert {"tests", "docs", "CITATION.cff"} <= set(included)


@pytest.mark.parametrize("sink", SINKS)
def test_every_sink_is_an_extra_and_has_its_rows(sink):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert len(extras[sink]) == 1
    assert f"| `{sink}` | `firstorder[{sink}]` | `tracking/{sink}`" in page("train")


@pytest.mark.parametrize("start", [("sum", "none"), ("sum", "terse"), ("guess", "none")], ids="-".join)
def test_the_table_of_cold_starts_shows_what_the_script_prints(start):
    task, style = start
    (row,) = re.findall(rf"\| `{task}` \| `{style}` \| (.*) \|\n", page("tasks"))
    script = runpy.run_path(str(ROOT / "docs/examples/starts.py"))
    found = script["figures"](Sim(task=task, coldstart=style), 8)
    assert found == pytest.approx([float(x) for x in row.split(" | ")], abs=0.006)


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


def test_the_commands_of_the_sweep_page_do_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    small = [
        "schedule.steps=1",
        "sim.members=2",
        "sim.vocab=3",
        "sim.horizon=2",
        "sim.prompts=2",
        "schedule.group_size=2",
    ]
    commands = re.findall(r"^\$ firstorder (.*)$", page("sweep").replace("\\\n", ""), flags=re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["sweep", "report"]
    assert run([*commands[0].split(), *(word for each in small for word in ("--set", each))]) == 0
    assert run(commands[1].split()) == 0
    for name in ("sweep", "summary"):
        columns = parquet.read_schema(tmp_path / f"sweeps/noise/{name}.parquet").names
        described = {key for group in tables.groups().values() for key in group}
        described |= {column for column in columns if "/" in column}
        known = {column for column in columns if f"`{column}`" in page("sweep")} | {"recipe", "sim.numerics.scale"}
        assert set(columns) <= known | (described if name == "sweep" else set())


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs/index.md"], ids=lambda path: path.stem)
def test_the_python_of_the_first_pages_runs(path, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)
    exec(code, {})
    assert re.search(r"\d\.\d{3}", capsys.readouterr().out)


def first_real_run(text):
    """The words of the first training on torchtitan that a page shows."""
    (command, *_) = re.findall(r"firstorder (train \S+ --backend torchtitan [^\n]*)", text.replace("\\\n", " "))
    return shlex.split(command, comments=True)


def test_the_readme_trains_real_engines_with_the_settings_whose_rewards_are_published():
    shown = first_real_run((ROOT / "README.md").read_text())
    assert shown == first_real_run(page("engines"))
    settings = [word for before, word in pairwise(shown) if before == "--set"]
    run = compose_engines(shown[1], settings)
    found = (run.recipe.optimizer.lr, run.torchtitan.dtype, run.torchtitan.evaluate_prompts, run.task.kind)
    assert found == (1e-4, "float32", 256, "sums")
