"""`import firstorder as fo`: what it exports, that it is the command line's equal, and that its pages run."""

import ast
import json
import re
import runpy
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import firstorder as fo
from firstorder.cli.api.compose import grid
from firstorder.cli.api.overrides import laid
from firstorder.cli.main import run
from firstorder.core.errors import ConfigError
from firstorder.core.runs.files import to_json
from firstorder.core.settings import toml
from firstorder.sim.sweep import plan

ROOT = Path(__file__).parents[1]
notebooks = SimpleNamespace(**runpy.run_path(str(ROOT / "tests/notebooks.py")))
TINY = {"vocab": 3, "horizon": 2, "prompts": 2, "width": 4}
SETS = [word for key, value in TINY.items() for word in ("--set", f"sim.{key}={value}")]


def untimed(document):
    return re.sub(r'"seconds": [^,}\n]+', "", document)


def test_what_is_exported_is_there_sorted_and_seen_by_type_checkers():
    tree = ast.parse(Path(fo.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    seen = {(each.module.removeprefix("firstorder."), alias.name) for each in block.body for alias in each.names}
    assert seen == {(home, name) for home, names in fo._HOMES.items() for name in names}
    assert fo.__all__ == sorted(name for _, name in seen)
    assert set(fo.__all__) <= set(dir(fo))
    assert all(getattr(fo, name).__doc__ for name in fo.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'mesure'"):
        _ = fo.mesure


def test_every_error_is_exported():
    from firstorder.core import errors

    names = {name for name, each in vars(errors).items() if isinstance(each, type) and issubclass(each, Exception)}
    assert names <= set(fo.__all__)


def test_the_import_is_light():
    script = (
        "import sys, time; start = time.process_time(); import firstorder; spent = time.process_time() - start;"
        "print(spent, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    spent, *loaded = done.stdout.split()
    assert not {"torch", "numpy", "scipy", "pydantic", "typer", "rich"} & set(loaded)
    assert float(spent) < 0.2


def test_a_recipe_needs_no_torch():
    script = "import sys, firstorder as fo; fo.recipe('minirl').with_(clip={'high': 0.3}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "scipy", "typer"} & set(done.stdout.split())


def test_a_result_is_what_the_command_writes_and_prints(capsys):
    result = fo.measure("minirl-r3", staleness=1, **TINY)
    arguments = ["measure", "minirl-r3", *SETS, "--set", "sim.staleness=1"]
    assert run([*arguments, "--json", "-"]) == 0
    written = json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n"
    assert untimed(written) == untimed(capsys.readouterr().out)
    assert written == to_json(result.document)
    assert run(arguments) == 0
    shown = re.sub(r"[\d.]+ s", "", capsys.readouterr().out).split()
    assert re.sub(r"[\d.]+ s", "", str(result)).split() == shown
    assert repr(result) == str(result)
    assert {name: getattr(result, name) for name in ("replay_bias", "variance", "bounds", "seconds")} == {
        name: result.document["result"][name] for name in ("replay_bias", "variance", "bounds", "seconds")
    }
    assert result.document["result"].keys() <= {*vars(result)}


def test_claims_are_settled_as_the_command_settles_them(capsys):
    result = fo.validate(only=["baseline"], quick=True)
    assert result.verdicts == {"baseline": "holds"}
    assert (result.passed, result.differences) == (True, [])
    assert fo.validate(only=["baseline"], quick=True, expect=result).passed
    worse = result.document | {"claims": [result.document["claims"][0] | {"verdict": "fails"}]}
    other = fo.validate(only=["baseline"], quick=True, expect=replace(result, document=worse))
    assert (other.passed, other.differences) == (False, ["baseline: holds, recorded fails"])
    assert run(["validate", "--quick", "--only", "baseline", "--json", "-"]) == 0
    assert untimed(to_json(result.document)) == untimed(capsys.readouterr().out)
    (row,) = result.records()
    assert (row["claim"], row["verdict"], row["headline"]) == (
        "baseline",
        "holds",
        result.claims["baseline"].outcome.headline,
    )
    (axes,) = result.plot().axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["baseline"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["holds"]
    assert row["headline"] in [each.get_text() for each in axes.texts]
    with pytest.raises(ConfigError, match="--out keeps the runs of --training"):
        fo.validate(out="runs")


def test_a_notebook_shows_the_table(monkeypatch):
    html = fo.measure("minirl", numerics={"kind": "batch"}, draws=2, **TINY)._repr_html_()
    assert html.startswith("<table><caption>minirl, scope group")
    assert "95% interval" in html
    assert "reward, |J(pi) - J(mu) - E[R sum(rho - 1)]|" in html
    assert "<p>note: rollouts depend on their batch" in html
    assert re.search(r'<td style="text-align: left">not run *</td>', fo.recipes()._repr_html_())


def test_every_way_to_give_a_setting_is_the_same():
    given = [
        laid({}, {"staleness": 2, "clip": {"high": 0.3}}),
        laid({"sim.staleness": np.int64(2)}, {"clip": {"high": torch.tensor(0.3, dtype=torch.float64)}}),
        laid({"sim": {"staleness": 2}, "clip.high": 0.3}),
        laid(["sim.staleness=2", "clip.high=0.3"]),
        laid([("sim.staleness", 2)], {"clip": {"high": np.float64(0.3)}}),
    ]
    assert given == [[("sim.staleness", 2), ("clip.high", 0.3)]] * len(given)


def test_names_files_and_objects_are_one(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(toml.source("minirl-r2"))
    changed = fo.recipe("minirl-r2").with_({"clip.low": 0.1}, clip={"high": 0.3})
    assert (changed.clip.low, changed.clip.high) == (0.1, 0.3)
    assert fo.recipe("minirl-r2").clip.high == 0.27
    assert changed == fo.recipe("minirl-r2", ["clip.low=0.1"], clip={"high": 0.3})
    assert fo.recipe(file) == fo.recipe(str(file)) == fo.recipe(fo.recipe("minirl-r2")) == fo.recipe("minirl-r2")
    assert fo.recipe("minirl-r2").with_() == fo.recipe("minirl-r2")
    assert toml.build(fo.Recipe, toml.tomllib.loads(str(changed))) == changed
    assert fo.recipes().names == toml.shipped()


def test_a_grid_of_objects_is_that_of_their_names():
    names, assigned = ["minirl-none-n2", "minirl-r2-n2"], [f"sim.{key}={value}" for key, value in TINY.items()]
    axes, cells = grid("minirl", assigned, [f"recipe={','.join(names)}", "sim.numerics.scale=0.1,0.2"])
    scales = np.array([0.1, 0.2])
    objects = {"recipe": [fo.recipe(name) for name in names], "sim": {"numerics.scale": scales}}
    assert grid(fo.recipe("minirl"), {"sim": TINY}, objects) == (axes, cells)


REFUSED = {
    "an unknown keyword": ({"stalenes": 2}, "no setting 'stalenes'; did you mean 'staleness'?"),
    "an unknown key": ({"clip": {"hihg": 0.3}}, "unknown key 'clip.hihg'; did you mean 'high'?"),
    "another type": ({"seed": "x"}, "sim.seed: input should be a valid integer, got 'x'"),
    "the engines'": ({"vllm": {"dtype": "float32"}}, "'vllm.dtype' is a setting of the real engines"),
    "out of range": ({"staleness": -1}, "sim.staleness: must lie in [0, 10000], got -1"),
    "no key": ({"clip": {"": 1}}, "the key of an override is a.b, got ''"),
    "no text for a key": ({"clip": {1: 1}}, "the key of an override is a.b, got 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_one_line(name):
    keywords, remedy = REFUSED[name]
    with pytest.raises(fo.ConfigError) as raised:
        fo.measure("minirl", **keywords)
    assert remedy in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"clip.high": 0.3}, "axis 'clip.high' has no values, got 0.3; give a list of them"),
        ({"clip.high": []}, "axis 'clip.high' has no values"),
        ({"clip": [{"high": 0.3}]}, "axis 'clip' takes single values, got a table"),
        ({"recipe": ["minirl", fo.recipe("minirl")]}, "axis 'recipe' holds 'minirl' twice"),
    ],
)
def test_an_axis_is_a_list_of_values(given, remedy):
    with pytest.raises(ConfigError, match=re.escape(remedy)):
        fo.sweep("minirl", given, **TINY)


def test_what_a_figure_or_a_table_needs_is_named(monkeypatch):
    result = fo.measure("minirl", **TINY)
    assert isinstance(result.plot(), Figure)
    assert result.plot()._repr_png_().startswith(b"\x89PNG")
    for module, method, extra in (("matplotlib", result.plot, "report"), ("pandas", result.to_pandas, "notebook")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(ConfigError, match=re.escape(f"pip install 'firstorder[{extra}]'")):
                method()


def test_a_table_has_a_row_for_each_quantity(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", type("pandas", (), {"DataFrame": staticmethod(list)}))
    result = fo.measure("minirl-r3", numerics={"kind": "batch"}, draws=2, **TINY)
    rows = {row["quantity"]: row for row in result.to_pandas()}
    assert rows["replay_bias"]["value"] == result.replay_bias
    assert rows["replay_bias"]["low"] == result.intervals["replay_bias"].low
    assert rows["variance"] | {"meaning": ""} == {
        "recipe": "minirl-r3",
        "quantity": "variance",
        "meaning": "",
        **dict.fromkeys(("value", "low", "high")),
    }


def test_threads_may_measure_at_once():
    names = ("minirl-r2", "minirl-r3")
    expected = {name: untimed(to_json(fo.measure(name, **TINY).document)) for name in names}
    found = {}

    def measure(name):
        found[name] = untimed(to_json(fo.measure(name, **TINY).document))

    threads = [threading.Thread(target=measure, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_a_second_call_imports_and_reads_nothing():
    fo.measure("minirl", **TINY)
    modules, files = set(sys.modules), toml.source.cache_info().misses
    fo.measure("minirl", **TINY)
    assert (set(sys.modules), toml.source.cache_info().misses) == (modules, files)


def test_an_interruption_passes_and_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "train", interrupt)
    with pytest.raises(KeyboardInterrupt) as raised:
        fo.sweep("minirl-none-n2", {"clip.high": [0.2, 0.3]}, out=tmp_path / "sweep", **TINY)
    assert raised.value.__notes__ == [f"{tmp_path / 'sweep'}: go on with --resume"]


def test_a_report_without_runs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least one folder"):
        fo.report(out=tmp_path / "report")


@pytest.mark.parametrize("file", sorted((ROOT / "cli/commands").glob("*.py")), ids=lambda file: file.stem)
def test_a_command_holds_no_logic(file):
    modules = {node.module for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in modules if name and name.startswith(("firstorder.sim", "firstorder.backends"))}


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    monkeypatch.setattr("firstorder.cli.report.files.run_report", lambda runs: {"report.html": b""})  # drawn elsewhere
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    namespace = {}
    shown = [notebooks.texts(notebooks.run(block, namespace)) for block in blocks]
    assert any("did you mean 'staleness'?" in text for text in shown)
    assert (tmp_path / "replay.png").stat().st_size > 10_000
    assert (tmp_path / "report/report.html").is_file()
