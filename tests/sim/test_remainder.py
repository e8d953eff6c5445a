"""The second-order term of the value error: exact on the tree, and what sampled batches make of it."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from firstorder.core.training.diagnostics import diagnose, remainder_moment
from firstorder.sim.exact import objectives
from firstorder.sim.exact.measurement import Measurement, token_stats
from firstorder.sim.exact.sampled import sample_responses, sampled_stats

RECIPES = {"disabled": "minirl", "R2": "minirl-r2", "R3": "minirl-r3"}
ROUNDING = 1e-9  # of a difference of values of order 1 that is itself a hundred to a million times smaller


def elementary(stats, logp_pi, order):
    """E_μ[R e_k(δ)], e_k the sum of all products of k different δ of a response, in plain numbers."""
    total = 0.0
    rows = zip(stats.measure[0], stats.rewards[0], stats.mask[0], logp_pi[0], stats.logp_mu[0], strict=True)
    for chance, reward, mask, pi, mu in rows:
        delta = [float((a - b).exp()) - 1 for a, b in zip(pi[mask], mu[mask], strict=True)]
        total += float(chance * reward) * sum(math.prod(chosen) for chosen in combinations(delta, order))
    return total


@pytest.mark.parametrize("mode", RECIPES)
@pytest.mark.parametrize("staleness", [0, 2])
def test_the_remainder_is_the_second_order_term_of_the_exact_value_error(
    mode, staleness, small, make_scene, make_recipe
):
    scene = make_scene(small(staleness=staleness, lr=1.0))
    stats = token_stats(scene, make_recipe(RECIPES[mode]))
    above, below = remainder_moment(stats, stats.logp_theta)
    second = float(above / below)
    assert float(below) == pytest.approx(1.0, rel=1e-12)
    assert second == pytest.approx(elementary(stats, stats.logp_theta, 2), rel=1e-11)
    error = float(objectives.values(scene, mode).error)
    # three tokens at most: what is left is the third order, and nothing else
    assert error == pytest.approx(second + elementary(stats, stats.logp_theta, 3), rel=ROUNDING)
    assert abs(error) > 1e-6


@pytest.mark.parametrize("mode", RECIPES)
def test_the_diagnostics_of_an_exhaustive_batch_are_exact(mode, small, make_scene, make_recipe):
    scene = make_scene(small())
    stats = token_stats(scene, make_recipe(RECIPES[mode]))
    found = diagnose(stats)
    values = objectives.values(scene, mode)
    assert float(found["reward_pi"]) == pytest.approx(float(values.j_seq), rel=1e-12)
    assert float(found["second_order_remainder"]) == pytest.approx(elementary(stats, stats.logp_old, 2), rel=1e-11)


def test_the_remainder_takes_over_as_the_engines_approach_each_other(small, make_scene, make_recipe):
    """What it misses is of third order: a tenth of the noise leaves about a hundredth of the relative gap or less."""
    recipe, gaps = make_recipe("minirl-r3"), []
    for scale in (0.1, 0.001):
        scene = make_scene(small(numerics={"kind": "noise", "scale": scale}))
        second = float(diagnose(token_stats(scene, recipe))["second_order_remainder"])
        error = float(objectives.values(scene, "R3").error)
        gaps.append(abs(error - second) / abs(error))
    assert gaps[1] < 0.03 * gaps[0] < 0.03


@pytest.mark.parametrize("mode", RECIPES)
def test_sampled_batches_estimate_the_remainder_and_the_reward_of_pi(mode, small, make_scene, make_recipe):
    scene, recipe = make_scene(small()), make_recipe(RECIPES[mode], "schedule.group_size=4")
    picks = sample_responses(scene, 400, 4, 60, torch.Generator().manual_seed(3))
    batches = sampled_stats(Measurement(scene=scene, recipe=recipe), picks)
    exhaustive = diagnose(token_stats(scene, recipe))
    found = diagnose(batches)
    for name in ("second_order_remainder", "reward_pi"):
        values, limit = found[name], float(exhaustive[name])
        error = float(values.std(correction=1)) / len(values) ** 0.5
        assert abs(float(values.mean()) - limit) < 4 * error, name
        assert error < 0.35 * abs(limit), name


def test_the_moment_of_two_parts_adds_up_to_the_whole(small, make_scene, make_recipe):
    scene, recipe = make_scene(small()), make_recipe("minirl", "schedule.group_size=4")
    picks = sample_responses(scene, 8, 4, 1, torch.Generator().manual_seed(3))
    names = ("logp_theta", "logp_old", "logp_mu", "mask", "advantage", "rewards", "turn")
    whole = sampled_stats(Measurement(scene=scene, recipe=recipe), picks)
    parts = [replace(whole, **{n: getattr(whole, n)[:, cut] for n in names}) for cut in (slice(0, 12), slice(12, 32))]
    sums = [remainder_moment(part, part.logp_old) for part in parts]
    together = remainder_moment(whole, whole.logp_old)
    for place in (0, 1):
        torch.testing.assert_close(sums[0][place] + sums[1][place], together[place], rtol=1e-12, atol=0)
