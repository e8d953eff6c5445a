import itertools
import math

import pytest
import torch

from firstorder.sim.exact import objectives, variance
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.variance import group_variance

SETTINGS = {
    "stale": {"staleness": 1, "lr": 2.0, "horizon": 2},
    "one_prompt": {
        "prompt_length": 1,
        "prompts": 1,
        "horizon": 2,
        "seed": 3,
        "staleness": 1,
        "reward": "graded",
        "vocab": 4,
    },
    "noisy_trainer": {"horizon": 2, "seed": 5, "training_numerics": {"kind": "noise", "scale": 0.2, "seed": 4}},
    "sigmoid_bias": {"horizon": 2, "router": "sigmoid_bias", "seed": 1, "truncated": "zero"},
    "guess": {"horizon": 2, "task": "guess", "vocab": 4, "seed": 2, "staleness": 1, "prompts": 1},
}
RECIPES = {
    "stale": [
        "reinforce",
        "reinforce-plus-plus",
        "reinforce-plus-plus-baseline",
        "ppo-critic",
        "minirl",
        "minirl-r2",
        "minirl-r3",
        "grpo",
        "gspo",
        "vespo",
        "m2po",
        "ctpo",
        "rspo",
    ],
    "one_prompt": ["minirl-r3", "grpo", "minirl-critic", "ppo-batch-std"],
    "noisy_trainer": ["minirl", "minirl-r3"],
    "sigmoid_bias": ["minirl-r2", "minirl-tis"],
    "guess": ["minirl-r2", "minirl-r3"],
}


@pytest.fixture(scope="module", params=SETTINGS)
def both(request, small, make_lab, make_scene):
    sim = small(**SETTINGS[request.param])
    return request.param, make_lab(sim), make_scene(sim)


def enumerated(lab, reference, recipe, size):
    """E‖mean update of a group‖² - ‖E‖² over all groups of all prompts."""
    target, known = lab.target[str(recipe.router_replay)], {}
    scaled = lab.scale(recipe.advantage, size)

    def one(prompt, response, a):
        key = (prompt, response, a if isinstance(a, tuple) else round(a, 13))
        if key not in known:
            weight = lab.token_weights(recipe, (prompt, response), a)
            total = sum(w * logp for w, logp in zip(weight, target.logps(prompt, response), strict=True))
            known[key] = reference.slope(total, lab.weights)
        return known[key]

    mean = square = 0.0
    for prompt in lab.prompts:
        for group in itertools.product(lab.responses, repeat=size):
            chance = math.prod(lab.chance[prompt, y] * len(lab.prompts) for y in group) / len(lab.prompts)
            if recipe.has_critic:
                earned = [lab.gae((prompt, y), recipe.advantage.gae_lambda) for y in group]
            else:
                earned = reference.group_advantage([lab.reward[prompt, y] for y in group], recipe.advantage)
            update = sum(one(prompt, y, scaled(a)) for y, a in zip(group, earned, strict=True)) / size
            mean, square = mean + chance * update, square + chance * float(update @ update)
    return mean, square - float(mean @ mean)


@pytest.mark.parametrize("size", [2, 3])
def test_the_variance_of_a_group_is_that_over_all_groups(both, size, reference, make_recipe, same):
    setting, lab, scene = both
    for name in RECIPES[setting] if size == 2 else RECIPES[setting][:2]:
        recipe = make_recipe(name, f"schedule.group_size={size}")
        measurement = Measurement(scene=scene, recipe=recipe)
        mean, expected = enumerated(lab, reference, recipe, size)
        same(measurement.update[0], mean, 1e-10)
        assert float(group_variance(measurement)) == pytest.approx(expected, rel=1e-9)


def test_a_group_of_one_has_the_variance_of_a_response(small, make_lab, make_scene, make_recipe, reference):
    sim = small(horizon=2)
    lab, scene = make_lab(sim), make_scene(sim)
    recipe = make_recipe("reinforce", "schedule.group_size=1")
    _, expected = enumerated(lab, reference, recipe, 1)
    assert float(group_variance(Measurement(scene=scene, recipe=recipe))) == pytest.approx(expected, rel=1e-9)


def test_chunks_of_responses_change_nothing(small, make_scene, make_recipe, monkeypatch, same):
    sim = small(staleness=1)
    scene, recipe = make_scene(sim), make_recipe("minirl-r3")
    whole = group_variance(Measurement(scene=scene, recipe=recipe))
    monkeypatch.setattr(variance, "CHUNK", 7)
    same(group_variance(Measurement(scene=scene, recipe=recipe)), whole)


def test_norms_are_those_of_each_response_s_own_gradient(small, make_scene, make_recipe, same):
    sim = small(staleness=1, lr=2.0)
    scene, recipe = make_scene(sim), make_recipe("minirl-r3")
    measurement = Measurement(scene=scene, recipe=recipe)
    up, down = measurement.batch.up.weight, measurement.batch.down.weight
    found = variance.response_norms(measurement, torch.cat([up, down]))
    for row in range(0, len(scene.responses.path), 4):
        only = torch.zeros_like(up)
        only[:, row] = 1
        alone = [objectives.direction(scene, "R3", only * w).square().sum() for w in (up, down)]
        same(found[row], torch.stack(alone), 1e-11)
