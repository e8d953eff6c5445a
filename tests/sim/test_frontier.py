"""The study of the frontier: a small cell, how cells become rows, and what is kept of them."""

import json
import math

import pytest

from firstorder.sim.exact.compare import compare
from firstorder.sim.studies import frontier
from firstorder.sim.studies.frontier import PLACES, RECIPES, STUDY, WHOLE, Place, cell, read_rows, verdict
from firstorder.sim.studies.kept import median, over
from firstorder.sim.studies.study import Plan

TINY = {"positions": 2, "width": 8, "coldstart_steps": 60, "vocab": 4, "right": 1, "prompts": 2, "horizon": 5}
NOISE = frontier._noise(0.3)
SHOWN = ("minirl", "minirl-r2", "minirl-r3", "reinforce-is", "step by ESS")


@pytest.fixture
def tiny(monkeypatch):
    """Two conditions of a second, and few recipes."""
    monkeypatch.setattr(frontier, "RECIPES", {name: RECIPES[name] for name in SHOWN})
    monkeypatch.setattr(frontier, "WHOLE", ("gspo",))
    places = {
        "near": Place(sim=TINY | NOISE),
        "whole": Place(sim=TINY | NOISE | {"world": "tree", "staleness": 1}, group=4),
    }
    monkeypatch.setattr(frontier, "PLACES", places)
    monkeypatch.setattr(frontier, "QUICK", tuple(places))
    return places


def test_a_cell_holds_what_recipes_compared_come_to(tiny):
    found = cell(tiny["near"], 3)
    recipes = {name: tiny["near"].recipe(name) for name in SHOWN}
    alone = compare(recipes, tiny["near"].world(3))
    for name, one in alone.items():
        assert found["recipes"][name]["bias"] == pytest.approx(one.natural.bias / one.natural.target, rel=1e-9)
        assert found["recipes"][name]["variance"] == pytest.approx(one.natural.variance / one.natural.target, rel=1e-9)
        progress = found["recipes"][name]["relative"] * found["on_policy"]
        assert progress == pytest.approx(one.natural.progress, rel=1e-9)
    assert found["step"]["step"] == pytest.approx(alone["step by ESS"].step)
    assert found["step"]["with"] < found["step"]["progress"] > found["step"]["without"]
    variances = {name: of["variance"] for name, of in found["recipes"].items() if name.startswith("b ")}
    assert variances["b best of a context"] <= variances["b best of a prompt"] <= variances["b = E[R | prompt]"]
    assert variances["b best of a position"] <= min(variances["b published"], variances["b published, by logits"])
    assert variances["b best of a context"] <= variances["b = E[R | context]"]
    assert variances["b best of a prompt"] <= variances["b = 0"]


def test_a_study_is_measured_once_and_found_again(tiny, tmp_path):
    budget = Plan(folder=tmp_path, seeds=range(500, 502), quick=True)
    first = STUDY.answer(budget)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert len(kept) == 4
    assert STUDY.answer(budget) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == kept
    assert {row["condition"] for row in first.rows} == {"near", "whole"}
    assert "gspo" in {row["recipe"] for row in first.rows if row["condition"] == "whole"}
    assert first.headline.startswith("minirl-r2 against minirl: alike in ")
    json.dumps([first.rows, first.measured], allow_nan=False)


def made(**relative):
    """A policy in a condition where every recipe has a progress, a bias and a variance."""
    recipes = {
        name: {"bias": bias, "variance": variance, "ceiling": 1 - bias, "relative": progress, "needed": needed}
        for name, (progress, bias, variance, needed) in relative.items()
    }
    return {"kl": 0.1, "flips": 0.2, "kl_stale": 0.0, "on_policy": 0.5, "recipes": recipes, "step": {}}


def test_rows_pair_policies_and_name_the_frontier():
    cells = [
        made(
            minirl=(0.5 + 0.1 * k, 0.1, 1.0, 2000),
            **{"minirl-r3": (0.7 + 0.1 * k, 0.05, 0.5, 1500), "grpo": (0.52 + 0.1 * k, 0.9, 0.1, None)},
            **{"b = 0": (0.1, 0.01, 0.01, 9000)},
        )
        for k in range(8)
    ]
    rows = {row["recipe"]: row for row in read_rows("base", cells)}
    assert rows["minirl"]["against_minirl"] is None
    assert rows["minirl-r3"]["against_minirl"] == "ahead"  # though policies differ by more than recipes
    assert rows["grpo"]["against_minirl"] == "alike"
    assert rows["b = 0"]["against_minirl"] == "behind"
    assert rows["grpo"]["needed"] is None
    assert rows["minirl-r3"]["needed"] == 1500
    assert [rows[name]["frontier"] for name in ("minirl", "minirl-r3", "grpo")] == [False, True, True]
    assert rows["b = 0"]["oracle"]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.06, 0.2, "ahead"), (-0.2, -0.06, "behind"), (-0.01, 0.04, "alike"), (-0.01, 0.2, "open"), (-0.2, 0.2, "open")],
)
def test_a_lead_is_worth_a_change_of_recipe(low, high, said):
    assert verdict(low, high) == said


def test_a_median_may_be_infinite():
    assert median(over([{"a": 1.0}, {"a": None}, {"a": 3.0}], "a")) == 3.0
    assert median(over([{"a": 1.0}, {"a": None}], "a")) is None
    assert math.isinf(over([{"a": None}], "a")[0])


def test_every_condition_is_a_world_of_its_own_with_minibatches_of_one_size():
    worlds = [(str(place.world(3)), place.group) for place in PLACES.values()]
    assert len(set(worlds)) == len(worlds)
    for place in PLACES.values():
        for name in (*RECIPES, *WHOLE):
            schedule = place.recipe(name).schedule
            assert schedule.prompts * schedule.group_size // schedule.minibatches == 1024


def test_the_figure_has_a_panel_a_condition(tiny, tmp_path):
    from firstorder.cli.report.studies import study

    rows = STUDY.answer(Plan(folder=tmp_path, seeds=range(500, 502), quick=True)).rows
    figure = study("frontier", rows)
    assert [ax.get_title("left").split(":")[0] for ax in figure.axes] == ["near", "whole"]
    drawn = sum(len(line.get_xdata()) for line in figure.axes[0].lines if line.get_linestyle() == "None")
    assert drawn == sum(row["condition"] == "near" for row in rows)
