"""The study of bounds: its parts, its rule, and a first look from end to end."""

import json

import numpy as np
import pytest

import firstorder as fo
from firstorder.sim.studies import bounds as study
from firstorder.sim.studies.kept import kept
from firstorder.sim.studies.margins import SCALES, WIDTHS, margins
from firstorder.sim.studies.tightness import ROLLOUT, policies


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    """A first look, and the folder that keeps its parts."""
    folder = tmp_path_factory.mktemp("study")
    return fo.study("bounds", quick=True, out=folder), folder / "bounds"


def test_a_first_look_has_every_part_and_no_bound_is_broken(looked):
    result, folder = looked
    names = list(study.parts(study.QUICK, range(500, 503)))
    assert sorted(path.stem for path in folder.iterdir()) == sorted(names)
    assert {row["part"].split(",")[0] for row in result.rows} == {"length", "search", "margins", "flips"}
    assert all(each["holds"] for each in result.measured["bounds"])
    assert result.measured["excess"] <= study.ROUNDING
    assert result.headline.startswith("all ")
    assert {row["at"] for row in result.measured["training"]} == {ROLLOUT, 2 * ROLLOUT}
    assert len({tuple(row) for row in result.rows}) == 1  # the same keys in every row


def test_what_was_computed_is_found_again(looked):
    result, folder = looked
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = fo.study("bounds", quick=True, out=folder.parent)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    assert again.rows == result.rows


def test_its_figure_shows_lengths_searches_and_margins(looked):
    figure = looked[0].plot()
    titles = [ax.get_title("left") for ax in figure.axes]
    assert len(titles) == 5
    assert titles[0] == "|error| and bounds on it"
    labels = [label.get_text() for label in figure.axes[2].get_yticklabels()]
    assert labels == [each["name"] for each in looked[0].measured["bounds"]]


def test_parts_are_kept_one_file_each(tmp_path):
    calls = []

    def part():
        calls.append(1)
        return {"x": float("inf"), "y": 0.1}

    assert kept(tmp_path / "f", {"a": part}) == {"a": {"x": None, "y": 0.1}}
    assert kept(tmp_path / "f", {"a": part, "b": part})["b"]["y"] == 0.1
    assert len(calls) == 2
    assert json.loads((tmp_path / "f/a.json").read_text())["y"] == 0.1


def row(name, largest, of="error"):
    return {"of": of, "name": name, "largest": largest, "part": "search", "at": 2, "vocab": 2}


def every(**largest):
    rows = [row(n, largest.get(n, 0.5), of) for of, names in study.TARGETS.items() for n in names]
    return {each["name"]: each for each in study.verdicts(rows)}


def test_the_rule_of_a_bound():
    found = every(classical=1 + 1e-11, coupling=0.99, linear=0.98)
    assert not found["classical"]["holds"]
    assert (found["coupling"]["holds"], found["coupling"]["sharp"]) == (True, True)
    assert (found["linear"]["holds"], found["linear"]["sharp"]) == (True, False)
    assert "broken: classical" in study.headline(list(found.values()), [])


@pytest.mark.parametrize(
    ("ends", "holds"),
    [((0.95, 1.05), True), ((0.5, 0.89), False), ((1.2, 1.3), False), ((0.85, 1.0), None), ((None, None), None)],
)
def test_the_rule_of_a_slope(ends, holds):
    assert study._inside({"value": 1.0, "low": ends[0], "high": ends[1]}, study.LINEAR) is holds


def test_errors_that_are_rounding_have_no_share():
    cell = {"error disabled": {"bounded": [1e-12, 0.1], "bounds": {"linear": [1e-13, 0.4]}}}
    (found,) = study._rows("policies", 2, [cell])
    assert found["largest"] == found["ratio"] == pytest.approx(0.25)
    assert found["policies"] == 2


def test_stale_policies_have_a_bias_under_r2_and_fresh_ones_none():
    fresh, stale = (policies("top1", 2, range(4), stale=stale) for stale in (False, True))
    assert set(stale) - set(fresh) == {"error R2", "replay R2"}
    assert max(stale["replay R2"]["bounded"]) > 0
    for cell in (fresh, stale):
        for each in cell.values():
            for limit in each["bounds"].values():
                assert bool((np.asarray(each["bounded"]) <= np.asarray(limit) + study.ROUNDING).all())


def test_one_choice_alone_flips_as_often_as_its_margins_say():
    found = margins("softmax_topk", range(200), alone=True)
    thin, flips = ([each["value"] for each in found[key]] for key in ("thin", "flips"))
    assert thin == sorted(thin)
    assert flips == sorted(flips)
    assert len(thin) == len(WIDTHS)
    assert len(flips) == len(SCALES)
    wide = found["over_predicted"][SCALES.index(0.03)]  # about a hundred flips, a tenth of it to a standard deviation
    assert 0.75 < wide["value"] < 1.35


def test_groups_flip_more_often_than_margins_inside_them_say():
    assert margins("group_limited", range(200), alone=True)["judged"]["low"] > 1.1
