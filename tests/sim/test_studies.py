"""Studies: the search for a border, what a finding is judged by, and the command."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import firstorder as fo
from firstorder.cli.main import run
from firstorder.sim.studies import STUDIES, Answer, Plan, Study, plan, regimes, samples
from firstorder.sim.studies.bisection import Axis, searched
from firstorder.sim.studies.regimes import BASE
from firstorder.sim.trials.long import LongCondition, course


@given(st.floats(0.5, 2000.0), st.booleans(), st.booleans())
def test_a_border_is_bracketed_as_closely_as_asked(at, rising, whole):
    axis = Axis(low=1, high=1000, ratio=1.3, whole=whole)
    found = searched({"x": axis}, lambda points: {name: (x > at) == rising for name, x in points.items()})["x"]
    if (at < 1) == (at < 1000):
        assert found.borders == []
        assert list(found.asked) == [1.0, 1000.0]
        return
    (border,) = found.borders
    assert border.below <= at <= border.above
    assert border.above <= 1.3 * border.below * 1.0001 or (whole and border.above - border.below <= 1)
    assert border.below < border.at < border.above
    assert border.holds_above == rising
    assert len(found.asked) <= 2 + math.ceil(math.log2(math.log(1000) / math.log(1.3))) + 1


def test_what_holds_inside_alone_has_two_borders():
    axis = Axis(low=1, high=1000, inside=30, ratio=1.3)
    found = searched({"x": axis}, lambda points: {name: 10 < x < 100 for name, x in points.items()})["x"]
    first, second = found.borders
    assert first.below <= 10 < first.above <= 1.3 * first.below * 1.0001
    assert second.below < 100 <= second.above <= 1.3 * second.below * 1.0001
    assert (first.holds_above, second.holds_above) == (True, False)


def test_searches_stand_side_by_side_and_each_ends_by_itself():
    rounds = []

    def ask(points):
        rounds.append(set(points))
        return {name: name == "b" or x > 50 for name, x in points.items()}

    found = searched({"a": Axis(low=1, high=100, ratio=2), "b": Axis(low=1, high=100, inside=100)}, ask)
    assert rounds[:2] == [{"a", "b"}, {"a", "b"}]
    assert all(asked == {"a"} for asked in rounds[2:])
    assert found["b"].borders == []


def series(values, seeds=8):
    """J of every seed at 12 evaluations."""
    return {"exact/j_pi": torch.tensor(values, dtype=torch.float64).expand(seeds, 12).clone()}


def test_what_a_policy_starts_with_can_be_lost():
    start = course(series([0.2] * 12)["exact/j_pi"], BASE.value)
    assert start[:, 0].tolist() == [BASE.value] * 8
    cells = {"minirl": series([0.9] * 12), "minirl-no-is": series([0.2] * 12)}
    reading = regimes.FINDINGS["collapse"].judge(cells, BASE)
    assert reading.holds
    assert reading.value.value == 1.0
    from_less = regimes.FINDINGS["collapse"].judge(cells, BASE.but(value=0.3))
    assert not from_less.holds
    both = regimes.FINDINGS["collapse"].judge(dict.fromkeys(cells, series([0.2] * 12)), BASE)
    assert not both.holds


def test_a_lead_must_be_worth_a_change_of_recipe():
    def judged(name, **ends):
        recipes = regimes.FINDINGS[name].recipes
        return regimes.FINDINGS[name].judge(
            {recipe: series([ends.get(recipe[-2:], 0.8)] * 12) for recipe in recipes}, BASE
        )

    assert judged("is", **{"is": 0.7}).holds
    assert not judged("is", **{"is": 0.76}).holds
    assert not judged("best", **{"is": 0.5}).holds  # R3 is no worse
    assert judged("best", **{"is": 0.5, "r3": 0.6}).holds
    assert not judged("clip-r2").holds
    assert judged("clip-r2", r2=0.9).holds


def test_starts_are_alike_where_they_end_close():
    judge = regimes.FINDINGS["starts"].judge
    assert judge({"0.3": series([0.80] * 12), "0.5": series([0.85] * 12)}, BASE).holds
    assert not judge({"0.3": series([0.70] * 12), "0.5": series([0.85] * 12)}, BASE).holds


@pytest.mark.parametrize(("name", "axis"), [(name, axis) for name, f in regimes.FINDINGS.items() for axis in f.axes])
def test_every_point_of_a_search_is_a_world_of_its_own(name, axis):
    found, along = regimes.FINDINGS[name], regimes.AXES[axis]
    ends = [along.at(found.base, x) for x in (along.axis.low, along.axis.high)]
    runs = [found.runs(condition) for condition in ends]
    cells = [{condition.cell(recipe, range(2)).name for condition, recipe in each.values()} for each in runs]
    assert cells[0].isdisjoint(cells[1])
    assert all(len(each) == len(found.runs(ends[0])) for each in cells)


def test_returns_are_moved_apart_from_length_and_number_of_contexts():
    few, many = (regimes.AXES["returns"].at(BASE, x).world(range(1)) for x in (16, 128))
    assert few.horizon == many.horizon
    assert few.prompts * few.positions == many.prompts * many.positions
    assert few.horizon / few.positions == 16


def test_an_accuracy_is_kept_as_responses_grow():
    short, long = (regimes.AXES["horizon at this accuracy"].at(BASE, x).world(range(1)) for x in (64, 256))
    assert short.taught == pytest.approx(long.taught, rel=1e-4)


def test_reports_rest_on_seeds_that_choices_did_not():
    assert plan(None).seeds.start >= 2000
    assert plan(None, quick=True).seeds.stop < 1000


def test_each_study_has_a_question_a_rule_and_a_figure():
    from firstorder.cli.report.studies import FIGURES

    assert set(FIGURES) == {study.id for study in STUDIES}
    assert len({study.id for study in STUDIES}) == len(STUDIES)
    assert all(study.question.endswith("?") and study.rule and study.source for study in STUDIES)


TINY = LongCondition(horizon=8, updates=4, problems=2, sim=(("positions", 2), ("width", 8), ("coldstart_steps", 60)))


def answer(budget: Plan) -> Answer:
    """The regimes' search with a world of a second."""
    found = regimes._at({"is": ("is", "noise", 0.1)}, budget)["is"]
    return Answer(headline="seen", rows=[{"value": found.value.value}], measured={})


@pytest.fixture
def tiny(monkeypatch):
    from firstorder.sim import studies

    finding = regimes.FINDINGS["is"]
    monkeypatch.setitem(regimes.FINDINGS, "is", type(finding)(**{**vars(finding), "base": TINY}))
    study = Study(id="tiny", question="Is it?", source="tests", rule="none", answer=answer)
    monkeypatch.setattr(studies, "STUDIES", (study,))


def test_a_study_is_answered_once_and_found_again(tiny, tmp_path, capsys):
    words = ["study", "tiny", "--quick", "--out", str(tmp_path / "runs")]
    assert run([*words, "--json", str(tmp_path / "a.json")]) == 0
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/cells").glob("*/*")}
    assert trained
    assert run([*words, "--json", str(tmp_path / "b.json")]) == 0
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert first["schema"] == "firstorder.study/1"
    assert first["rows"] == second["rows"]
    assert "Is it?" in capsys.readouterr().out
    assert run([*words[:2], "--out", words[-1]]) == 2
    assert "was run with study.quick = True, got False" in capsys.readouterr().err


def test_in_python_it_is_the_same(tiny, tmp_path):
    result = fo.study("tiny", quick=True, out=tmp_path / "runs")
    assert result.records() == result.to_dict()["rows"]
    assert list(fo.studies()) == ["tiny"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["study", "regime"], "no study 'regime'; did you mean 'regimes'? studies: "),
        (["study", "--quick"], "give its name"),
        (["study", "regimes", "--json", "/nowhere/x.json"], "/nowhere"),
    ],
)
def test_what_cannot_be_answered_is_refused(words, said, capsys):
    assert run(words) == 2
    assert said in capsys.readouterr().err


def test_its_figure_shows_every_search():
    from firstorder.cli.report.studies import _parts, study

    none = {"border": None, "below": None, "above": None, "holds_above": None, "low": 1.0, "high": 100.0}
    one = none | {"border": 10.0, "below": 8.0, "above": 12.0, "holds_above": True, "holds": None}
    two = one | {"border": 50.0, "below": 45.0, "above": 55.0, "holds_above": False}
    rows = [
        {"finding": "is", "axis": "lr"} | one,
        {"finding": "is", "axis": "lr"} | two,
        {"finding": "is", "axis": "noise"} | none | {"holds": True},
        {"finding": "best", "axis": "lr"} | none | {"holds": False},
    ]
    figure = study("regimes", rows)
    assert [ax.get_title("left") for ax in figure.axes] == ["lr", "noise"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["is", "best"]
    assert _parts(rows[:2]) == [(1.0, 8.0, False), (12.0, 45.0, True), (55.0, 100.0, False)]
    assert _parts(rows[2:3]) == [(1.0, 100.0, True)]


@pytest.mark.parametrize("axis", regimes.AXES)
def test_the_base_is_a_point_of_every_axis(axis):
    along, base = regimes.AXES[axis], regimes.BASE
    assert along.at(base, along.of(base)).cell("minirl", range(2)).sim == base.cell("minirl", range(2)).sim


def test_samples_confirm_a_border_on_both_of_its_sides(monkeypatch):
    def answered(near, far):
        ends = {64: {"minirl": 0.8, "minirl-no-is": 0.8 - near}, 256: {"minirl": 0.8, "minirl-no-is": 0.8 - far}}

        def gathered(cells, folder):
            found = {}
            for condition, name in cells:
                found.setdefault(condition, {})[name] = series([ends[condition.horizon][name]] * 12)
            return found

        monkeypatch.setattr(samples, "gathered", gathered)
        return samples.STUDY.answer(plan(None))

    assert answered(0.0, 0.3).headline.startswith("confirmed: lead +0.00")
    assert answered(0.0, 0.0).headline.startswith("not confirmed")
    assert answered(0.3, 0.3).headline.startswith("not settled")
    assert [row["T"] for row in answered(0.0, 0.3).rows] == [64, 256]
