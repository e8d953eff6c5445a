import pytest
import torch

from firstorder.core.method.recipe import Recipe
from firstorder.core.method.surrogate import receipts, token_weights
from firstorder.core.settings import toml
from firstorder.sim.exact import objectives
from firstorder.sim.exact.measure import measure
from firstorder.sim.exact.measurement import token_stats, update
from firstorder.sim.exact.scene import MODES
from firstorder.sim.exact.world import gather

RTOL = 1e-10
RECIPES = {name: toml.build(Recipe, toml.read(name)) for name in toml.shipped()}
RUNNABLE = [name for name, recipe in RECIPES.items() if not recipe.about.unsupported]
SPELLINGS = {str(recipe.router_replay) for recipe in RECIPES.values()} | set(MODES)
BY_MODE = {"disabled": "minirl", "R2": "minirl-r2", "R3": "minirl-r3"}
SETTINGS = {
    "stale": {"staleness": 2, "lr": 1.0},
    "fresh": {"seed": 5},
    "one_token_prompt": {"prompt_length": 1, "prompts": 1, "staleness": 1, "lr": 2.0, "truncated": "zero"},
    "long_prompt": {"prompt_length": 3, "prompts": 3, "staleness": 1, "seed": 3, "horizon": 2},
    "graded": {"vocab": 4, "horizon": 2, "reward": "graded", "staleness": 1, "temperature": 0.7, "truncated": "zero"},
    "one_step": {"horizon": 1, "vocab": 5, "staleness": 1},
    "program": {"task": "program", "vocab": 4, "horizon": 2, "staleness": 1, "seed": 2},
    "text": {"task": "text", "vocab": 4, "horizon": 2, "staleness": 1, "seed": 4, "truncated": "zero"},
    "guess": {"task": "guess", "vocab": 4, "horizon": 3, "staleness": 1, "lr": 0.5},
    "guess_in_long_turns": {"task": "guess", "vocab": 4, "horizon": 3, "turn_length": 2, "reward": "binary", "seed": 1},
    "topk_softmax": {"router": "topk_softmax", "staleness": 1, "seed": 1},
    "sigmoid_bias": {"router": "sigmoid_bias", "staleness": 1, "seed": 2},
    "group_limited": {"router": "group_limited", "experts": 6, "groups": 3, "limited_groups": 2, "staleness": 1},
    "top1": {"router": "top1", "top_k": 1, "staleness": 1, "numerics": {"kind": "noise", "scale": 0.4}},
    "router_noise_only": {"numerics": {"kind": "noise", "router_scale": 0.5, "expert_scale": 0.0, "seed": 3}},
    "head_noise": {"numerics": {"kind": "noise", "scale": 0.1, "head_scale": 0.3}, "temperature": 0.7, "staleness": 1},
    "noisy_trainer": {"training_numerics": {"kind": "noise", "scale": 0.1, "seed": 8}, "staleness": 1, "seed": 1},
}


@pytest.fixture(scope="module", params=SETTINGS)
def both(request, small, make_lab, make_scene):
    sim = small(**SETTINGS[request.param])
    return sim, make_lab(sim), make_scene(sim)


@pytest.fixture(scope="module")
def stale(small, make_lab, make_scene):
    sim = small(**SETTINGS["stale"])
    return make_lab(sim), make_scene(sim, SPELLINGS)


def test_every_response_is_enumerated_once(both, pairs_of):
    _, lab, scene = both
    assert sorted(pairs_of(scene.world)) == sorted(lab.pairs)


def test_every_engine_gives_every_response_its_log_probs(both, pairs_of, same):
    _, lab, scene = both
    engines = [(scene.mu_old, lab.mu), (scene.mu, lab.mu_theta)]
    engines += [(scene.old[m], lab.old[m]) for m in MODES] + [(scene.target[m], lab.target[m]) for m in MODES]
    for done, engine in engines:
        found = gather(done.logp.detach(), scene.responses)[0]
        expected = torch.zeros_like(found)
        for row, pair in zip(expected, pairs_of(scene.world), strict=True):
            row[: len(pair[1])] = torch.tensor(engine.plain(pair), dtype=torch.float64)
        same(found, expected, RTOL)


def test_rewards_and_the_measure_are_those_of_the_responses(both, pairs_of, same):
    _, lab, scene = both
    pairs = pairs_of(scene.world)
    same(scene.responses.rewards, [lab.reward[p] for p in pairs], RTOL)
    same(scene.measure[0], [lab.chance[p] for p in pairs], RTOL)


@pytest.mark.parametrize("mode", MODES)
def test_the_sequence_gradient_is_that_of_j(both, mode, same):
    _, lab, scene = both
    same(objectives.gradient(scene, mode)[0], lab.gradient(mode), RTOL)


@pytest.mark.parametrize("mode", MODES)
def test_a_measurement_reports_the_reference_s_numbers(both, mode, make_recipe):
    sim, lab, _ = both
    recipe = make_recipe(BY_MODE[mode], "schedule.group_size=2")
    result = measure(recipe, sim)
    expected = lab.values(mode) | lab.routes(mode)
    assert {n: result[n] for n in expected} == pytest.approx(expected, rel=RTOL, abs=1e-13)
    u, g = lab.update(recipe, lab.advantages(recipe.advantage, 2)), lab.gradient(mode)
    natural = lab.gradient("disabled")
    scale = (u @ g) / (u @ u)
    fit = {
        "gradient_error": (scale * u - g).norm() / g.norm(),
        "gradient_error_raw": (u - g).norm() / g.norm(),
        "update_scale": scale,
        "cosine": (u @ g) / (u.norm() * g.norm()),
        "gradient_error_natural": ((u @ natural) / (u @ u) * u - natural).norm() / natural.norm(),
        "cosine_natural": (u @ natural) / (u.norm() * natural.norm()),
    }
    assert {n: result[n] for n in fit} == pytest.approx({n: float(v) for n, v in fit.items()}, rel=1e-8, abs=1e-12)


@pytest.fixture(scope="module")
def advantages(stale):
    """Chances of advantages over all groups of 3, once for each baseline."""
    lab, _ = stale
    known = {}

    def look_up(rule):
        if rule not in known:
            known[rule] = lab.advantages(rule, 3)
        return known[rule]

    return look_up


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_expected_update_of_every_shipped_recipe_is_that_of_all_groups(name, stale, advantages, acting, same):
    lab, scene = stale
    recipe = acting(name, "schedule.group_size=3")
    found = update(scene, recipe)[0]
    assert float(found.norm()) > 0
    same(found, lab.update(recipe, advantages(recipe.advantage)), RTOL)


@pytest.mark.parametrize("baseline", ["none", "leave_one_out", "value"])
def test_a_bound_over_the_batch_meets_the_signs_of_every_baseline(baseline, stale, acting, same):
    lab, scene = stale
    changes = ["advantage.std=false", "schedule.group_size=2", f'advantage.baseline="{baseline}"']
    recipe = acting("m2po", *changes, *(["advantage.gae_lambda=0.5"] if baseline == "value" else []))
    same(update(scene, recipe)[0], lab.update(recipe, lab.advantages(recipe.advantage, 2)), RTOL)


@pytest.mark.parametrize("keys", [["ratio.span=turn"], [], ["correction.kind=truncate", "correction.span=turn"]])
def test_a_turn_ends_where_the_environment_answers(keys, small, make_lab, make_scene, make_recipe, same):
    sim = small(task="guess", vocab=4, prompts=1, turn_length=2, horizon=3, staleness=1, lr=1.0)
    bounds = ["correction.low=0.9", "correction.high=1.02"] if len(keys) > 1 else []
    recipe = make_recipe("turn-ppo", "clip.low=0.01", "clip.high=0.01", *keys, *bounds, "schedule.group_size=2")
    lab, scene = make_lab(sim), make_scene(sim)
    found = update(scene, recipe)[0]
    same(found, lab.update(recipe, lab.advantages(recipe.advantage, 2)), RTOL)
    whole = [key.replace("turn", "sequence") for key in keys] or ["ratio.span=geometric"]
    other = recipe.with_(dict(key.split("=") for key in whole if "span" in key))
    assert float((update(scene, other)[0] - found).norm()) > 1e-3 * float(found.norm())


@pytest.mark.parametrize("baseline", ["value", "leave_one_out"])
@pytest.mark.parametrize("scale", ["whiten", "batch_std"])
def test_a_scale_of_the_batch_is_that_of_all_groups(baseline, scale, small, make_lab, make_scene, make_recipe, same):
    sim = small(**SETTINGS["graded"])
    changes = [f'advantage.baseline="{baseline}"', f"advantage.scale={scale}", "about.scope=batch"]
    recipe = make_recipe(
        "minirl-r3", "schedule.group_size=3", *changes, *(["advantage.gae_lambda=0.5"] if baseline == "value" else [])
    )
    lab, scene = make_lab(sim), make_scene(sim)
    same(update(scene, recipe)[0], lab.update(recipe, lab.advantages(recipe.advantage, 3)), RTOL)


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
@pytest.mark.parametrize("std", [True, False])
def test_a_baseline_over_several_reward_levels_is_that_of_all_groups(
    baseline, std, small, make_lab, make_scene, make_recipe, same
):
    sim = small(**SETTINGS["graded"])
    recipe = make_recipe(
        "minirl-r3", "schedule.group_size=3", f"advantage.baseline={baseline}", f"advantage.std={str(std).lower()}"
    )
    lab, scene = make_lab(sim), make_scene(sim)
    assert len(set(lab.reward.values())) == 3
    same(update(scene, recipe)[0], lab.update(recipe, lab.advantages(recipe.advantage, 3)), RTOL)


def test_every_part_acts_in_the_settings_of_the_reference(stale, acting):
    lab, scene = stale
    assert lab.routes("disabled")["flip_rate"] > 0
    assert lab.values("R2")["replay_bias"] != 0
    for name in RUNNABLE:
        recipe = acting(name)
        stats = token_stats(scene, recipe)
        acted = dict.fromkeys(("clip_upper", "clip_lower", "corrected"), 0.0)
        for sign in (1.0, -1.0):
            signed = stats.with_advantage(sign * stats.advantage)
            counts = receipts(signed, token_weights(signed, recipe), recipe)
            acted = {part: n + float(counts[part][0]) for part, n in acted.items()}
        for part, n in acted.items():
            kinds = {recipe.correction.kind, recipe.rejection.kind} if part == "corrected" else {recipe.clip.kind}
            assert (n > 0) == (kinds != {"none"}), (name, part)
