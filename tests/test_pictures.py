"""Every picture of the docs is drawn from the data beside it, these are what the code makes, and a page shows both."""

import json
from pathlib import Path

import pytest

import decision
import drawn
import generate
import landing
import plots
import shown

ROOT = Path(__file__).parents[1]
PAGES = "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
BEHIND = "run `make docs-tables`"
AT_ONCE = [*landing.PICTURES, decision.PICTURE, *plots.PICTURES[:1]]


def named(picture):
    return picture.name


@pytest.mark.parametrize("picture", generate.PICTURES, ids=named)
def test_a_picture_is_drawn_from_its_data_and_shown_with_them(picture):
    assert picture.digest in picture.svg, BEHIND
    assert f"images/{picture.name}.svg" in PAGES
    assert f"images/{picture.name}.json" in PAGES


@pytest.mark.parametrize("picture", AT_ONCE, ids=named)
def test_the_data_are_what_the_code_and_the_records_make(picture):
    assert picture.shown == json.loads(json.dumps(picture.data())), BEHIND


@pytest.mark.parametrize("kind", plots.KINDS[1::2])
def test_the_errors_of_an_arithmetic_are_those_of_the_code(kind):
    for name in plots.TARGETS:
        found, shown = plots.measured(name, kind, plots.SEEDS[2]), plots.PICTURES[1].shown[name][kind]
        assert {key: shown[key][2] for key in plots.QUANTITIES} == pytest.approx(
            {key: found[key] for key in plots.QUANTITIES}, rel=1e-6
        ), BEHIND


def test_a_picture_knows_what_it_was_drawn_from(tmp_path, monkeypatch):
    monkeypatch.setattr(drawn, "IMAGES", tmp_path)
    plots.PICTURES[0].write()
    assert plots.PICTURES[0].digest in plots.PICTURES[0].svg
    (tmp_path / "weights.json").write_text("{}")
    assert plots.PICTURES[0].digest not in plots.PICTURES[0].svg


@pytest.mark.parametrize("name", shown.FIGURES)
def test_the_numbers_of_a_figure_of_a_result_are_those_of_the_code(name):
    figure = shown.FIGURES[name]
    held = json.loads((ROOT / f"docs/images/{name}.json").read_text())
    found = json.loads(json.dumps(figure.data(figure.make())))
    assert parts(found) == pytest.approx(parts(held), rel=1e-6, abs=1e-12), BEHIND
    assert f"images/{name}.svg" in PAGES
    assert f"images/{name}.json" in PAGES


def parts(tree):
    """The numbers of nested tables and lists, by the way that leads to each."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = {}
    for key, value in pairs:
        if isinstance(value, (dict, list)):
            found |= {(key, *more): number for more, number in parts(value).items()}
        elif isinstance(value, (int, float)):
            found[(key,)] = value
    return found
