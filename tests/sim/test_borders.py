"""Borders of findings: where they lie at a discrepancy, which recipes they are about, and files that are damaged."""

import json
import math

import pytest

from firstorder.core.errors import DataError
from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import build, read
from firstorder.sim.trials import borders
from firstorder.sim.trials.borders import Border, crossed, line

WHOLE = {"finding": "collapse", "axis": "horizon", "base": "t512", "kl": 0.09, "low": 150, "high": 200}


def border(kl, high, axis="horizon", finding="collapse"):
    return Border(finding=finding, axis=axis, base="a condition", kl=kl, low=high / 2, high=high)


def shipped(name):
    return build(Recipe, read(name))


def test_a_border_is_a_line_in_logarithms_through_two_discrepancies():
    known = [border(0.1, 100), border(0.01, 1000)]
    for kl, where in [(0.1, 100), (0.01, 1000), (0.001, 10000), (10**-1.5, 10**2.5)]:
        assert line(known, kl)[0] == pytest.approx(where)
    assert {each.kl for each in line([*known, border(1e-5, 7)], 0.1)[1]} == {0.1, 0.01}  # the two around it


def test_a_border_never_rises_with_the_discrepancy():
    shipped = [each for each in borders.read() if (each.finding, each.axis) == ("collapse", "horizon")]
    lengths = [line(shipped, 0.003 * 1.05**i)[0] for i in range(80)]
    assert lengths == sorted(lengths, reverse=True)
    for each in shipped:
        assert line(shipped, each.kl)[0] == pytest.approx(each.high)


def test_a_border_at_one_discrepancy_says_nothing_of_smaller_ones():
    only = [border(0.01, 1000)]
    assert line(only, 0.02)[0] == 1000
    assert line(only, 0.005)[0] == math.inf


def test_a_recipe_lies_beyond_a_border_of_what_it_lacks():
    known = [border(0.09, 200), border(0.008, 2000)]
    reached = crossed(known, shipped("minirl-no-is"), horizon=2000, kl=0.008)
    assert [(one.finding, one.at, one.remedy) for one in reached] == [("collapse", 2000, "ratio.of = theta/mu")]
    assert reached[0].border == pytest.approx(2000)
    assert reached[0].json()["known"][0]["kl"] == 0.008
    assert crossed(known, shipped("minirl-no-is"), horizon=1990, kl=0.008) == []
    assert crossed(known, shipped("minirl"), horizon=10**6, kl=0.09) == []
    assert crossed(known, shipped("minirl-r3-no-is"), horizon=32768, kl=0.0015) != []  # R3 is no such factor
    assert crossed(known, shipped("grpo"), horizon=32768, kl=0.0015)[0].remedy == "correction.kind = ratio"


def test_a_border_in_updates_a_rollout_is_about_these():
    known = [border(0.01, 16, "minibatches", "clip")]
    stale = shipped("reinforce-n64")
    assert [one.at for one in crossed(known, stale, horizon=8, kl=0.02)] == [64]
    assert crossed(known, stale.with_(schedule={"minibatches": 8}), horizon=8, kl=0.02) == []


def test_what_is_shipped_can_be_read():
    assert isinstance(borders.read(), tuple)


def test_a_file_is_read_as_it_is_written(tmp_path):
    file = tmp_path / "borders.json"
    file.write_text(json.dumps({"borders": [WHOLE]}))
    assert borders.read(file) == (Border(**WHOLE),)


DAMAGED = {
    "no JSON": ("{", "holds no borders"),
    "another document": (json.dumps([1]), "holds no borders"),
    "no list": (json.dumps({"borders": [1]}), "holds no borders"),
    "a missing field": (json.dumps({"borders": [{"finding": "collapse"}]}), "holds no borders"),
    "an unknown finding": (json.dumps({"borders": [WHOLE | {"finding": "x"}]}), "border 0 is of the finding 'x'"),
    "an unknown axis": (json.dumps({"borders": [WHOLE | {"axis": "x"}]}), "border 0 is along 'x'"),
    "a word": (json.dumps({"borders": [WHOLE | {"kl": "x"}]}), "border 0 has kl = 'x'"),
    "a NaN": (json.dumps({"borders": [WHOLE | {"high": math.nan}]}), "border 0 has high = nan"),
    "ends the wrong way": (json.dumps({"borders": [WHOLE | {"low": 300}]}), "must be below high = 200"),
    "one twice": (json.dumps({"borders": [WHOLE, WHOLE]}), "border 1 is the second of collapse"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_by_name(name, tmp_path):
    content, what = DAMAGED[name]
    file = tmp_path / "borders.json"
    file.write_text(content)
    with pytest.raises(DataError, match=r"borders\.json") as refused:
        borders.read(file)
    assert what in str(refused.value)
