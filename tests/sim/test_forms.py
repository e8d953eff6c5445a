"""Weights by edge against the enumeration that they stand for."""

import pytest
import torch

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings import toml
from firstorder.sim.exact.forms import form
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.world import scatter

RECIPES = {name: toml.build(Recipe, toml.read(name)) for name in toml.shipped()}
BY_EDGE = [name for name, recipe in RECIPES.items() if not recipe.about.unsupported and form(recipe) is not None]
SPELLINGS = {str(recipe.router_replay) for recipe in RECIPES.values()}
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
    return make_scene(small(**SETTINGS[request.param]), SPELLINGS)


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


MADE = {
    "tokens by k1": {"rejection": {"kind": "k1", "low": -0.1, "high": 0.1}},
    "tokens by ratio where A < 0": {"rejection": {"kind": "ratio", "low": 0.99, "high": 1.01, "where": "negative"}},
    "tokens by kl": {"rejection": {"kind": "kl", "high": 0.2}, "clip": {"kind": "minirl", "low": 0.01, "high": 0.01}},
    "largest k2": {"rejection": {"kind": "k2", "of": "theta/mu", "over": "max", "high": 0.01}},
    "largest ratio before a product": {
        "rejection": {"kind": "ratio", "over": "max", "high": 1.1},
        "ratio": {"of": "theta/mu", "span": "prefix"},
    },
    "largest k1 and the next ratio": {
        "rejection": {"kind": "k1", "over": "max", "high": 0.1},
        "ratio": {"of": "theta/mu", "span": "forward", "steps": 2},
    },
    "largest k3 and a masked token": {
        "rejection": {"kind": "k3", "over": "max", "high": 0.01},
        "correction": {"kind": "mask", "low": 0.95, "high": 1.05},
        "clip": {"kind": "sapo", "temperature": [3.0, 5.0]},
        "ratio": {"of": "theta/old"},
    },
    "truncation on both sides": {
        "correction": {"kind": "truncate", "low": 0.95, "high": 1.05},
        "clip": {"kind": "dual", "low": 0.01, "high": 0.01, "cap": 1.02},
        "ratio": {"of": "theta/old"},
    },
}


@pytest.mark.parametrize("made", MADE)
def test_new_ways_to_reject_and_to_truncate_are_made_of_edges_as_of_responses(made, small, make_scene):
    scene = make_scene(small(**SETTINGS["stale"]), SPELLINGS)
    recipe = Recipe.model_validate(MADE[made] | {"schedule": {"group_size": 3}})
    measurement = Measurement(scene=scene, recipe=recipe)
    enumerated = scatter(measurement.batch.expected, scene.responses, scene.world.contexts)
    vars(measurement)["form"] = form(recipe)
    found = measurement.coefficients()
    assert float((found - enumerated).abs().max()) <= 1e-12 * float(enumerated.abs().max())
    bare = recipe.model_copy(update={"rejection": Recipe().rejection, "correction": Recipe().correction})
    assert not torch.equal(Measurement(scene=scene, recipe=bare).update, measurement.update)


@pytest.mark.parametrize(
    "keys",
    [
        {"rejection": {"kind": "k1", "over": "sum", "high": 0.1}},
        {"rejection": {"kind": "k3", "over": "mean", "high": 0.1}},
        {"rejection": {"kind": "k1", "over": "max", "low": -0.5, "high": 0.1}},
        {"rejection": {"kind": "k2", "over": "max", "low": 0.1, "high": 0.5}},
        {"rejection": {"kind": "k2", "over": "max", "high": 0.5, "where": "negative"}},
        {"ratio": {"span": "turn"}},
        {"correction": {"kind": "ratio", "span": "turn_geometric"}},
    ],
)
def test_what_looks_at_a_whole_response_or_turn_has_no_form(keys):
    assert form(Recipe.model_validate(keys)) is None


def test_most_shipped_recipes_have_a_form():
    assert {"reinforce", "minirl", "minirl-r2", "minirl-r3", "grpo", "dapo", "m2po", "nfpo", "trm"} <= set(BY_EDGE)


def test_a_tree_is_weighed_by_edge_where_a_weight_is_that_of_a_token_alone(scene, acting):
    for name in BY_EDGE:
        product = form(acting(name)).product
        assert (Measurement(scene=scene, recipe=acting(name)).form is None) == product
