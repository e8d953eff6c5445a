"""Weights by edge against the enumeration that they stand for."""

import pytest

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings import toml
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.world import scatter

RUNNABLE = [n for n in toml.shipped() if not toml.build(Recipe, toml.read(n)).about.unsupported]
SETTINGS = {
    "stale": {"staleness": 2, "lr": 1.0},
    "fresh": {"seed": 5},
    "graded": {"vocab": 4, "horizon": 2, "reward": "graded", "staleness": 1, "lr": 1.0, "truncated": "zero"},
    "guess": {"task": "guess", "vocab": 4, "staleness": 1, "lr": 0.5},
    "one_step": {"horizon": 1, "vocab": 5, "staleness": 1},
    "two_tokens": {"vocab": 2, "prompts": 1, "staleness": 1, "lr": 1.0},
}


@pytest.fixture(scope="module", params=SETTINGS)
def scene(request, small, make_scene):
    return make_scene(small(**SETTINGS[request.param]))


@pytest.mark.parametrize("name", RUNNABLE)
def test_weights_by_edge_are_those_of_the_responses_that_take_it(name, scene, acting, same):
    measurement = Measurement(scene=scene, recipe=acting(name, "schedule.group_size=3"))
    enumerated = scatter(measurement.batch.expected, scene.responses, scene.world.contexts)
    found = measurement.coefficients()
    assert found.shape == enumerated.shape
    assert float((found - enumerated).abs().max()) <= 1e-12 * float(enumerated.abs().max())


def test_most_shipped_recipes_are_weighed_by_edge(scene, acting):
    """So that the comparison above compares two computations."""
    by_edge = [n for n in RUNNABLE if Measurement(scene=scene, recipe=acting(n)).form is not None]
    assert {"reinforce", "minirl", "minirl-r2", "minirl-r3", "grpo", "dapo", "m2po", "rspo"} <= set(by_edge)
