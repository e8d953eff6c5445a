"""Every picture of the docs is drawn from the data beside it, these are what the code makes, and a page shows both."""

import json
from pathlib import Path

import pytest

import decision
import drawn
import generate
import landing
import plots

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
