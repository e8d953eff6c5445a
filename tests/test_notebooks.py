"""The notebooks run from the first cell to the last, and show what they store."""

import base64
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/notebooks"
FIGURES = {"first-order": 1, "my-run-collapsed": 1, "r2-or-r3": 1}
LARGEST = 60_000  # bytes of a stored figure
notebooks = SimpleNamespace(**runpy.run_path(str(ROOT / "tests/notebooks.py")))
EVERY = pytest.mark.parametrize("name", FIGURES)


def numbers(outputs):
    """All numbers of a cell's output in their order, but for times and names of folders."""
    text = re.sub(r"[\d.]+ s\b|/tmp\S*", "", notebooks.texts(outputs))
    return [float(each) for each in re.findall(r"-?\d+\.?\d*(?:e[+-]\d+)?", text)]


def stored(cells):
    return [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]


def test_every_notebook_is_run_here():
    assert sorted(FIGURES) == sorted(file.stem for file in FOLDER.iterdir())


@EVERY
def test_a_notebook_can_be_read_in_one_sitting(name):
    cells = notebooks.read(FOLDER / f"{name}.ipynb")
    assert 10 <= len(cells) <= 14
    assert cells[0]["source"][0].startswith("# ")
    assert "pip install" in "".join(cells[1]["source"])
    assert len({cell["id"] for cell in cells}) == len(cells)
    figures = [each["data"]["image/png"] for outputs in stored(cells) for each in outputs if "image/png" in str(each)]
    assert len(figures) == FIGURES[name]
    assert max(len(base64.b64decode(figure)) for figure in figures) < LARGEST


@EVERY
def test_a_notebook_runs_and_shows_what_it_stores(name, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    cells = notebooks.read(FOLDER / f"{name}.ipynb")
    for before, now in zip(stored(cells), notebooks.executed(cells), strict=True):
        forms = [[sorted(each.get("data", ["text"])) for each in outputs] for outputs in (before, now)]
        assert forms[0] == forms[1]
        assert numbers(now) == pytest.approx(numbers(before), rel=1e-3, abs=1e-9)
