"""Bias and variance of an update beside each other: two worlds, a sample, and tens of thousands of batches agree."""

import math
from dataclasses import replace

import pytest
import torch
from chains import ENDINGS, taught
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.errors import ConfigError
from firstorder.core.settings import toml
from firstorder.sim.exact.accuracy import Accuracy, accuracy
from firstorder.sim.exact.compare import ON_POLICY, Shared, compare, scene_of
from firstorder.sim.exact.edge_variance import edge_variance, exact
from firstorder.sim.exact.edges import vjp
from firstorder.sim.exact.measure import measure
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.sampled import sample_responses, sampled_edges
from firstorder.sim.exact.sampled_variance import accuracy_of, sampled
from firstorder.sim.exact.scores import directions, edge_scores
from firstorder.sim.exact.variance import group_variance

PRODUCTS = [
    ["reinforce-is", "ratio.span=prefix"],
    ["minirl", "correction.kind=ratio", "correction.of=old/mu", "correction.span=prefix", "ratio.of=theta/old"],
    ["minirl-length-norm", "ratio.span=prefix", "clip.kind=none"],
]
# of every scope but `batch`, whose exact values are the limit of large batches
SCOPES = ["reinforce", "reinforce-is", "minirl", "minirl-r3", "minirl-critic", "grpo", "gspo", "minpro", "mis", "rspo"]
Z = 4.5  # standard errors; one test in 150,000 fails by chance at each of about 60 comparisons


@pytest.mark.parametrize("kind", ENDINGS)
def test_the_variance_of_every_recipe_is_that_of_the_tree(kind, make_scene, acting):
    names = [[name] for name in toml.shipped() if not name.startswith("qwen") and name[-3:-1] != "-n"]
    recipes = [acting(name, "schedule.group_size=3", *changes) for name, *changes in names + PRODUCTS]
    recipes = [recipe for recipe in recipes if not recipe.about.unsupported]
    modes = {str(recipe.router_replay) for recipe in recipes}
    graph, tree = (make_scene(taught(kind, world), modes) for world in ("graph", "tree"))
    shared, seen = Shared(scene=graph), 0
    for recipe in recipes:
        measurement = Measurement(scene=graph, recipe=recipe)
        if not exact(measurement):
            continue
        expected = float(group_variance(Measurement(scene=tree, recipe=recipe)))
        found = float(edge_variance(measurement, shared.directions(measurement.mode)))
        assert found == pytest.approx(expected, rel=1e-10)
        seen += 1
    assert seen > 25


def test_directions_have_the_inner_products_of_scores(make_scene, same):
    modes = ("disabled", "R3", "R2 gates=replayed", "R3 condition=0.5")
    scene = make_scene(taught(), modes)
    for mode in modes:
        x = directions(scene, mode)
        for reached in scene.world.reachable:
            contexts = reached.nonzero()[:, 0]
            scores = edge_scores(scene, mode, contexts)[0].flatten(0, 1)
            inside = x[contexts].flatten(0, 1)
            same(inside @ inside.T, scores @ scores.T, 1e-12)
            edges = torch.zeros(1, *x.shape[:2], dtype=torch.float64)
            edges[0, contexts[0], 1] = 1
            same(vjp(scene.target[mode], edges, scene.weights)[0], scores[1], 1e-12)


def test_a_sample_is_right_on_average_however_small(make_scene, make_recipe):
    scene = make_scene(taught("answer", samples=6000, prompts=1))
    for recipe in (make_recipe("minirl-r3", "schedule.group_size=3"), make_recipe("minirl", "advantage.std=true")):
        measurement = Measurement(scene=scene, recipe=recipe)
        x, groups = directions(scene, measurement.mode), recipe.schedule.prompts
        known = {
            "square": float(measurement.update.square().sum()),
            "variance_raw": float(edge_variance(measurement, x)) / groups,
        }
        whole = sampled(measurement, x)
        parts = [_part(whole, slice(start, start + 3)) for start in range(0, 6000, 3)]
        small = [accuracy_of(part, torch.ones(x.shape[-1], dtype=torch.float64)) for part in parts]
        for name, expected in known.items():
            assert_mean(torch.tensor([getattr(each, name) for each in small], dtype=torch.float64), expected)


def _part(whole, cut):
    """Some of the responses to the one prompt, with their own mean update in its directions."""
    rows, means = whole.rows[:, cut], whole.means[:, cut]
    mean = torch.einsum("xks,xksd->d", means, rows)[None] / rows.shape[1]
    return replace(whole, rows=rows, level=whole.level[:, cut], means=means, updates=mean, cuts=[])


def assert_mean(values, expected):
    """Within chance of what they should be on average."""
    error = float(values.std()) / len(values) ** 0.5
    assert error > 0
    assert abs(float(values.mean()) - expected) < Z * error


@pytest.mark.parametrize("name", ["gspo", "minirl-critic", "mis", "nfpo"])
def test_what_is_sampled_on_a_graph_is_what_a_tree_makes_exact(name, make_scene, acting):
    recipe = acting(name, "schedule.group_size=3", "schedule.prompts=1", *["ratio.steps=2"] * (name == "nfpo"))
    exact_one = Shared(scene=make_scene(taught("answer", "tree"))).of(recipe)
    sampled_one = Shared(scene=make_scene(taught("answer", samples=16_000))).of(recipe)
    assert not exact_one.sampled
    assert sampled_one.sampled
    assert exact_one.interval(lambda of: of.own.mse) is None
    for read in (lambda of: of.own.variance_raw, lambda of: of.own.alignment, lambda of: of.natural.progress):
        interval = sampled_one.interval(read)
        half = (interval.high - interval.low) / 2
        assert 0 < half < 0.3 * abs(read(exact_one))
        assert abs(interval.estimate - read(exact_one)) < 2 * half


def test_tens_of_thousands_of_batches_have_the_bias_and_the_variance_that_are_exact(small, make_scene, acting, same):
    scene = make_scene(small(staleness=2, lr=1.0))
    generator = torch.Generator().manual_seed(11)
    picks = sample_responses(scene, 2, 3, 24_000, generator)
    eye = torch.eye(scene.world.contexts * scene.world.vocab, dtype=torch.float64)
    scores = {}
    for name in SCOPES:
        recipe = acting(name, "schedule.group_size=3", "schedule.prompts=2", "schedule.minibatches=1")
        measurement = Measurement(scene=scene, recipe=recipe)
        mode, found = measurement.mode, Shared(scene=scene).of(recipe)
        if mode not in scores:
            one = [vjp(scene.target[mode], e.view(1, *scene.mu_old.logp.shape[1:]), scene.weights)[0] for e in eye]
            scores[mode] = torch.stack(one)
        updates = sampled_edges(measurement, picks) @ scores[mode]
        for of, g in ((found.own, measurement.gradient[0]), (found.natural, measurement.natural_gradient[0])):
            assert_mean((of.scale * updates - g).square().sum(-1), of.mse)
            assert_mean((updates - g).square().sum(-1), of.mse_raw)
            assert_mean((updates - measurement.update[0]).square().sum(-1), of.variance_raw)
            step = of.best_step or 0.1  # 0 where an update goes down
            gained = 2 * step * (updates @ g) - step**2 * updates.square().sum(-1)
            assert_mean(gained / of.target, of.stepped(step))
            assert of.stepped(of.best_step) == pytest.approx(of.progress, rel=1e-12)
            assert of.stepped(1.1 * step) < of.progress
            assert not of.best_step or of.stepped(0.9 * step) < of.progress


positive = st.floats(1e-3, 1e3)


@given(positive, positive, positive, st.floats(-1, 1), st.integers(1, 10_000))
@settings(max_examples=100, deadline=None)
def test_responses_for_a_progress_make_it(square, target, variance, cosine, responses):
    alignment = cosine * math.sqrt(square * target)
    of = Accuracy(
        alignment=alignment,
        square=square,
        target=target,
        bias=target * (1 - cosine**2),
        bias_raw=square - 2 * alignment + target,
        variance_raw=variance,
        responses=responses,
    )
    assert of.mse >= of.target * (1 - cosine**2) - 1e-9 * target
    assert 0 <= of.progress <= of.ceiling <= 1 + 1e-12
    assert of.responses_for(0) == 0
    assert of.responses_for(of.ceiling * (1 + 1e-12) + 1e-300) == math.inf
    if of.progress > 1e-12 and of.progress < 0.999 * of.ceiling:
        assert of.responses_for(of.progress) == pytest.approx(responses, rel=1e-6)
        wanted = (of.progress + of.ceiling) / 2
        needed = of.responses_for(wanted)
        more = replace(of, variance_raw=variance * responses / needed)
        assert more.progress == pytest.approx(wanted, rel=1e-6)
    if cosine < 0:
        assert of.progress == of.best_step == 0
        assert of.responses_for(1e-9) == math.inf


def test_the_scale_of_an_update_changes_neither_error_nor_progress():
    u, g = torch.tensor([[1.0, 2.0, 0.5], [0.3, 1.0, 2.0]], dtype=torch.float64)
    one, other = accuracy(u, g, 2.0, 4), accuracy(3 * u, g, 18.0, 4)
    for name in ("bias", "variance", "mse", "progress", "ceiling"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-12)
    assert one.responses_for(0.1) == pytest.approx(other.responses_for(0.1), rel=1e-12)
    assert one.best_step == pytest.approx(3 * other.best_step, rel=1e-12)
    assert one.mse_raw == pytest.approx(float((u - g).square().sum()) + 2)


def test_without_mismatch_a_recipe_needs_as_many_responses_as_are_drawn_on_policy(make_recipe):
    recipe = make_recipe("minirl", "advantage.baseline=leave_one_out")
    for world in ("tree", "graph"):
        result = measure(recipe, taught(world=world, staleness=0, numerics={"kind": "exact"}))
        assert result["responses_for_equal_progress"] == pytest.approx(1024, rel=1e-9)
        assert result["progress_ceiling"] == pytest.approx(1)


@pytest.mark.parametrize("world", ["tree", "graph"])
def test_measure_splits_the_error_of_a_minibatch_into_bias_and_variance(world, make_recipe):
    result = measure(make_recipe("minirl-r3", "clip.low=0.05", "clip.high=0.05"), taught(world=world))
    norm = result["gradient_norm"]
    assert result["mse_bias"] == pytest.approx((result["gradient_error"] * norm) ** 2, rel=1e-9)
    assert result["mse_variance"] == pytest.approx(result["update_scale"] ** 2 * result["variance"], rel=1e-9)
    assert result["mse_raw"] == pytest.approx((result["gradient_error_raw"] * norm) ** 2 + result["variance"], rel=1e-9)
    assert result["progress_ceiling"] == pytest.approx(result["cosine_natural"] ** 2, rel=1e-9)
    for suffix in ("", "_natural"):
        parts = result[f"mse_bias{suffix}"] + result[f"mse_variance{suffix}"]
        assert result[f"mse{suffix}"] == pytest.approx(parts, rel=1e-12)
    assert result["responses_for_equal_progress"] > 1024  # of 64 groups of 16: mismatch costs


def test_what_can_only_be_sampled_says_so(make_recipe):
    result = measure(make_recipe("gspo"), taught(samples=400))
    for name in ("variance", "mse", "mse_natural", "progress", "progress_ceiling"):
        assert result["intervals"][name]["low"] < result["intervals"][name]["high"]
    assert measure(make_recipe("gspo"), taught(samples=4))["mse"] is None


@pytest.mark.parametrize("world", ["tree", "graph"])
def test_recipes_compared_together_are_those_measured_alone(world, make_recipe):
    recipes = {name: make_recipe(name, "schedule.group_size=4") for name in ("minirl", "minirl-r3", "gspo")}
    sim = taught(world=world, samples=64)
    found = compare(recipes, sim)
    assert list(found) == list(recipes)
    for name, recipe in recipes.items():
        alone = measure(recipe, sim)
        assert found[name].own.variance_raw == pytest.approx(alone["variance"], rel=1e-12)
        assert found[name].natural.mse == pytest.approx(alone["mse_natural"], rel=1e-9)
    reference = Shared(scene=scene_of(sim, [])).on_policy(recipes["minirl"].schedule)
    assert found["minirl"].natural.responses_for(reference.progress) == pytest.approx(
        measure(recipes["minirl"], sim)["responses_for_equal_progress"], rel=1e-9
    )


def test_a_step_scaled_by_the_effective_sample_size_is_a_scale_of_the_step_alone(make_recipe):
    plain, scaled = (make_recipe("minirl", *how) for how in ([], ["optimizer.step_scale=ess"]))
    found = compare({"plain": plain, "scaled": scaled}, taught())
    assert found["plain"].step == 1
    assert 0 < found["scaled"].step < 1
    assert found["plain"].natural == found["scaled"].natural


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"numerics": {"kind": "batch"}}, "many rollout engines"), ({"direction": "recipe"}, "by itself; use natural")],
)
def test_recipes_that_have_no_scene_in_common_are_refused(changes, said, make_recipe):
    with pytest.raises(ConfigError, match=said):
        compare({"minirl": make_recipe("minirl")}, taught(world="tree", **changes))


def test_the_reference_has_no_bias(make_scene):
    found = Shared(scene=make_scene(taught())).on_policy(ON_POLICY.schedule)
    assert found.bias < 1e-20 * found.target
    assert found.ceiling == pytest.approx(1, abs=1e-12)
