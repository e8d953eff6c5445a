"""Grids: values are TOML, every combination once, and a mistake is named."""

import itertools
import re

import pytest

from firstorder.core.errors import ConfigError
from firstorder.core.settings.grid import _split, axes, check_distinct, points, titled

WRITTEN = {
    "clip.high=0.2,0.3": [0.2, 0.3],
    "schedule.minibatches = 1, 2": [1, 2],
    "recipe=minirl,mine.toml": ["minirl", "mine.toml"],
    "advantage.std=true,false": [True, False],
    "correction.high=2.0,inf": [2.0, float("inf")],
    "optimizer.betas=[0.9, 0.95],[0.8, 0.9]": [[0.9, 0.95], [0.8, 0.9]],
    'recipe="a,b.toml",c': ["a,b.toml", "c"],
    "sim.seed=7": [7],
}
WRONG = {
    "no equals sign": (["clip.high"], "an axis is a.b=v1,v2, got 'clip.high'"),
    "no key": (["=1,2"], "an axis is a.b=v1,v2"),
    "an empty part": (["clip..high=1"], "an axis is a.b=v1,v2"),
    "no values": (["clip.high="], "axis 'clip.high' has no values"),
    "an empty value": (["clip.high=0.2,,0.3"], "axis 'clip.high' has an empty value"),
    "a comma at the end": (["clip.high=0.2,"], "axis 'clip.high' has an empty value"),
    "given twice": (["clip.high=0.2", "clip.high=0.3"], "axis 'clip.high' is given twice"),
    "a table": (["sim.numerics={kind='fp8'}"], "takes single values, got a table"),
}


@pytest.mark.parametrize("assignment", WRITTEN)
def test_values_are_toml_or_bare_strings(assignment):
    assert list(axes([assignment]).values()) == [WRITTEN[assignment]]


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_axis_is_refused(name):
    assignments, remedy = WRONG[name]
    with pytest.raises(ConfigError) as error:
        axes(assignments)
    assert remedy in str(error.value)


def test_every_combination_comes_once_and_the_last_axis_runs_fastest():
    found = points({"a": [1, 2], "b": ["x", "y", "z"]})
    assert [tuple(point.values()) for point in found] == [(a, b) for a in (1, 2) for b in "xyz"]


def test_values_that_are_one_are_refused():
    check_distinct("a", [1.0, 2.0])
    with pytest.raises(ConfigError, match=r"axis 'a' holds 1\.0 twice"):
        check_distinct("a", [1.0, 2.0, 1.0])


def test_a_point_names_its_keys():
    assert titled({"clip.high": 0.2, "recipe": "minirl"}) == "clip.high = 0.2, recipe = minirl"


def test_an_axis_is_cut_at_the_commas_that_its_definition_names_and_in_linear_time():
    outside = re.compile(r""",(?=(?:[^"'\[\]]|"[^"]*"|'[^']*'|\[[^\[\]]*\])*$)""")  # quadratic
    for letters in itertools.product("""a,"[]""", repeat=6):
        text = "".join(letters)
        assert _split(text) == outside.split(text)
    assert len(_split(",".join(map(str, range(100_000))))) == 100_000
