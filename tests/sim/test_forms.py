"""Weights by edge against the enumeration that they stand for."""

import pytest

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings import toml
from firstorder.sim.exact.forms import form
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.world import scatter

RECIPES = {name: toml.build(Recipe, toml.read(name)) for name in toml.shipped()}
BY_EDGE = [name for name, recipe in RECIPES.items() if not recipe.about.unsupported and form(recipe) is not None]
SETTINGS = {
    "stale": {"staleness": 2, "lr": 1.0},
    "fresh": {"seed": 5},
    "graded": {"vocab": 4, "horizon": 2, "reward": "graded", "staleness": 1, "lr": 1.0, "truncated": "zero"},
    "guess": {"task": "guess", "vocab": 4, "staleness": 1, "lr": 0.5},
    "one_step": {"horizon": 1, "vocab": 5, "staleness": 1},
    "two_tokens": {"vocab": 2, "prompts": 1},
}


@pytest.fixture(scope="module", params=SETTINGS)
def scene(request, small, make_scene):
    return make_scene(small(**SETTINGS[request.param]))


@pytest.mark.parametrize("name", BY_EDGE)
def test_weights_by_edge_are_those_of_the_responses_that_take_it(name, scene, acting):
    recipe = acting(name, "schedule.group_size=3")
    measurement = Measurement(scene=scene, recipe=recipe)
    enumerated = scatter(measurement.batch.expected, scene.responses, scene.world.contexts)
    if measurement.form is None:  # a product, which a tree takes over each response
        vars(measurement)["form"] = form(recipe)
    found = measurement.coefficients()
    assert found.shape == enumerated.shape
    assert float((found - enumerated).abs().max()) <= 1e-12 * float(enumerated.abs().max())


def test_most_shipped_recipes_have_a_form():
    assert {"reinforce", "minirl", "minirl-r2", "minirl-r3", "grpo", "dapo", "m2po", "nfpo", "trm"} <= set(BY_EDGE)


def test_a_tree_is_weighed_by_edge_where_a_weight_is_that_of_a_token_alone(scene, acting):
    for name in BY_EDGE:
        product = form(acting(name)).product
        assert (Measurement(scene=scene, recipe=acting(name)).form is None) == product
