"""The graph against the tree, which enumerates the responses of the same policy; its gradients and its samples."""

from dataclasses import replace

import pytest
import torch

from firstorder.core.errors import SizeError
from firstorder.core.method.advantage import advantage
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.surrogate import token_weights
from firstorder.core.settings.toml import build as build_recipe
from firstorder.core.settings.toml import read, shipped
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim
from firstorder.sim.exact import bounds, objectives, replay
from firstorder.sim.exact.edge_variance import edge_variance
from firstorder.sim.exact.forms import form
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.observed import observed
from firstorder.sim.exact.scene import MODES, build, engines, grow
from firstorder.sim.exact.scores import directions
from firstorder.sim.exact.size import bytes_needed, check_size
from firstorder.sim.exact.variance import group_variance
from firstorder.sim.exact.world import gather
from firstorder.sim.model.policy import load

CHAIN = {
    "task": "chain",
    "prompts": 2,
    "positions": 3,
    "vocab": 5,
    "right": 1,
    "horizon": 4,
    "layers": 2,
    "experts": 4,
    "width": 6,
    "expert_width": 4,
    "samples": 64,
}
KINDS = {
    "horizon": {},
    "answer": {"ending": "answer", "thinking": 1},
    "graded": {"ending": "answer", "reward": "graded"},
    "recovery": {"recovery": 1},
    "feedback": {"feedback": True, "turn_length": 2, "recovery": 1},
}
SIZES = ["schedule.group_size=4"]
LONG = {"world": "graph", "task": "chain", "prompts": 64, "positions": 8, "vocab": 16, "horizon": 32_768}


SPELLINGS = {str(build_recipe(Recipe, read(name)).router_replay) for name in shipped()} | set(MODES)


def settled(sim, members=2):
    """The scene of some policies that have moved, with the targets of all modes."""
    seeds = torch.arange(members)
    generator, pair, theta_old = torch.Generator().manual_seed(3), engines(sim, seeds), starting_weights(sim, seeds)
    theta = {k: w + 0.05 * torch.randn(w.shape, generator=generator, dtype=w.dtype) for k, w in theta_old.items()}
    return build(sim, grow(sim), pair, theta_old, theta, SPELLINGS)


def both(kind, members=2, **changes):
    return [settled(Sim(world=world, **CHAIN | KINDS[kind] | changes), members) for world in ("tree", "graph")]


@pytest.fixture(scope="module", params=KINDS)
def pair(request):
    """The same policies on the tree and on the graph."""
    return both(request.param)


@pytest.fixture(scope="module")
def formed(make_recipe):
    """Every shipped recipe that runs and has a form."""
    built = [make_recipe(name, *SIZES) for name in shipped() if not name.startswith("qwen")]
    return [recipe for recipe in built if recipe.about.unsupported is None and form(recipe) is not None]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("mode", MODES)
def test_values_expansion_gradients_and_bounds(pair, mode):
    tree, graph = pair
    for name, expected in vars(objectives.values(tree, mode)).items():
        close(vars(objectives.values(graph, mode))[name], expected)
    for order, expected in enumerate(objectives.terms(tree, mode).T):
        close(objectives.terms(graph, mode)[:, order], expected)
    close(objectives.gradient(graph, mode), objectives.gradient(tree, mode))
    for name, expected in bounds.bounds(tree, mode).items():
        found = bounds.bounds(graph, mode)[name]
        if name in ("trpo", "cpo"):  # their maxima are over a context's steps together where contexts merge
            assert (found >= expected * (1 - 1e-12)).all()
        else:
            close(found, expected)
    for name, (above, below) in replay.moments(tree, mode).items():
        found = replay.moments(graph, mode)[name]
        close(found[0], above)
        close(found[1], below)


def test_the_expected_update_of_every_recipe_that_has_a_form(pair, formed):
    tree, graph = pair
    assert len(formed) > 30
    for recipe in formed:
        expected, found = (Measurement(scene=scene, recipe=recipe) for scene in (tree, graph))
        close(found.update, expected.update)
        close(found.log_chi2, expected.log_chi2)


@pytest.mark.parametrize("product", ["prefix", "sequence", "forward"])
def test_the_expected_update_of_a_product_by_length(pair, product, make_recipe):
    spans = [f"ratio.span={product}", *["ratio.steps=2"] * (product == "forward")]
    recipe = make_recipe("minirl-length-norm", *spans, "clip.kind=none", *SIZES)
    tree, graph = (Measurement(scene=scene, recipe=recipe) for scene in pair)
    assert not graph.sampled
    close(graph.update, tree.update)


@pytest.mark.parametrize("name", ["minirl-r3", "minirl-length-norm", "grpo", "reinforce-plus-plus-baseline"])
@pytest.mark.parametrize("kind", ["horizon", "graded", "feedback"])
def test_variance_and_what_training_logs(kind, name, make_recipe):
    tree, graph = (
        Measurement(scene=s, recipe=make_recipe(name, *SIZES)) for s in both(kind, members=1, prompts=1, horizon=3)
    )
    close(edge_variance(graph, directions(graph.scene, graph.mode)), group_variance(tree))
    (expected, _), (said, sampled) = observed(tree), observed(graph)
    for group in ("diagnostics", "receipts.positive", "receipts.negative"):
        for key, value in at(expected, group).items():
            if f"{group}.{key}" not in sampled:
                assert at(said, group)[key] == pytest.approx(value, rel=1e-10, abs=1e-10), key


def at(table, path):
    for name in path.split("."):
        table = table[name]
    return table


def test_a_gradient_is_a_difference_of_values(make_recipe):
    """Along directions of the weights, of a policy that replays nothing and of one that replays R3."""
    sim = Sim(world="graph", **CHAIN | KINDS["recovery"] | {"horizon": 40})
    scene, step = settled(sim, members=1), 1e-5
    generator = torch.Generator().manual_seed(1)
    for mode in ("disabled", "R3"):
        slope = objectives.gradient(scene, mode)[0]
        way, ends = torch.randn(len(slope), generator=generator, dtype=torch.float64), []
        for sign in (1, -1):
            weights, place = {}, 0
            for name, w in scene.weights.items():
                moved = w.detach()
                if w.requires_grad:
                    moved = moved + sign * step * way[place : place + w[0].numel()].view(w.shape)
                    place += w[0].numel()
                weights[name] = moved
            model = load(weights, scene.pi, sim)
            ends.append(objectives.value(scene.world.run(model, scene.replay(mode)).logp, scene.world))
        assert float((ends[0] - ends[1]) / (2 * step)) == pytest.approx(float(slope @ way), rel=1e-6)


def test_the_order_of_experts_is_a_matter_of_names():
    sim = Sim(
        world="graph", **CHAIN | KINDS["answer"] | {"numerics": {"kind": "noise", "scale": 0.2, "router_scale": 0}}
    )
    scene, order = settled(sim, members=1), torch.tensor([2, 0, 3, 1])
    renamed = {name: w.detach() for name, w in scene.weights.items()}
    renamed["router"] = renamed["router"][..., order]
    renamed["up"], renamed["down"] = (renamed[name][:, :, order] for name in ("up", "down"))
    assert not torch.equal(renamed["router"], scene.weights["router"])
    logp = scene.world.run(load(renamed, scene.pi, sim)).logp
    close(logp, scene.target["disabled"].logp.detach())
    close(objectives.slopes(logp, scene.world), objectives.slopes(scene.target["disabled"].logp.detach(), scene.world))


GROUPS, GROUP = 5_000, 4


def test_the_mean_of_a_sample_is_the_expected_update_of_every_recipe_of_tokens(formed):
    """Groups of the sample with their own advantages; sums over edges with random signs, since an edge that the sample
    never takes has no standard error, within five of those over groups."""
    sim = Sim(world="graph", **CHAIN | KINDS["recovery"] | {"samples": GROUPS * GROUP, "horizon": 6})
    scene = settled(sim, members=1)
    order = scene.responses.prompt[0].argsort(stable=True)  # a group is of one prompt
    drawn = replace(
        scene.responses,
        path=scene.responses.path[0, order],
        mask=scene.responses.mask[0, order],
        prompt=scene.responses.prompt[0, order],
        rewards=scene.responses.rewards[0, order],
    )
    rewards, size = drawn.rewards.view(-1, GROUP), scene.world.contexts * scene.world.vocab
    tokens = [recipe for recipe in formed if not form(recipe).product and recipe.weight_scope != "batch"]
    assert len(tokens) > 20
    signs = 2.0 * torch.randint(0, 2, (size, 12), generator=torch.Generator().manual_seed(4)).double() - 1
    place = drawn.path.long().view(GROUPS, -1)
    for recipe in tokens:
        a = advantage(rewards, recipe.advantage).flatten()
        logp = {name: gather(x, drawn)[0] for name, x in policies(scene, str(recipe.router_replay)).items()}
        stats = TokenStats(**logp, mask=drawn.mask, advantage=a)
        weight = torch.where(drawn.mask, token_weights(stats, recipe).weight, 0.0).view(GROUPS, -1) / GROUP
        edges = torch.zeros(GROUPS, size, dtype=torch.float64).scatter_add_(1, place, weight)
        found = Measurement(scene=scene, recipe=recipe).coefficients().flatten() @ signs
        summed = edges @ signs
        error = summed.view(2, -1, signs.shape[1]).var(1).mean(0).sqrt() / GROUPS**0.5  # a stratum a prompt
        assert error.all()
        assert ((summed.mean(0) - found).abs() <= 5 * error).all(), recipe.about.name


def policies(scene, mode):
    return {
        "logp_theta": scene.target[mode].logp.detach(),
        "logp_old": scene.old[mode].logp.detach(),
        "logp_mu": scene.mu_old.logp,
    }


def test_a_horizon_too_long_for_the_memory_is_refused_with_one_that_fits():
    sim, available = Sim(**LONG), 2**30
    with pytest.raises(SizeError, match=r"lower sim\.horizon to") as refused:
        check_size(sim.model_copy(update={"horizon": 1 << 20}), 1, available)
    fits = int(str(refused.value).split("sim.horizon to ")[1].split(",")[0])
    check_size(sim.model_copy(update={"horizon": fits}), 1, available)
    with pytest.raises(SizeError):
        check_size(sim.model_copy(update={"horizon": fits + 1}), 1, available)
    assert bytes_needed(sim, 1) < bytes_needed(sim, 2)


def test_where_every_response_is_sure_to_fail_there_is_no_gradient(make_recipe):
    """μ loses the chain with probability one, to rounding: no reward, no gradient, and no crash."""
    scene = settled(Sim(world="graph", **CHAIN), members=1)
    lost = scene.world.table.cut[scene.world.table.follow] == 0
    logp = torch.where(lost, 0.0, -800.0)[None].double().log_softmax(-1)
    passes = {mode: replace(p, logp=p.logp * 0 + logp) for mode, p in scene.target.items()}
    still = {mode: replace(p, logp=logp) for mode, p in scene.old.items()}
    dead = replace(
        scene, mu_old=replace(scene.mu_old, logp=logp), mu=replace(scene.mu, logp=logp), old=still, target=passes
    )
    measurement = Measurement(scene=dead, recipe=make_recipe("minirl", *SIZES))
    assert not measurement.gradient.any()
    assert not measurement.update.any()
    assert float(objectives.values(dead, "disabled").j_mu) == 0.0
