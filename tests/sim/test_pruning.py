"""Vocabulary pruning: the tail of the rollout engine left out of both engines."""

import pytest
import torch

from firstorder.core.errors import ConfigError
from firstorder.sim.exact import objectives
from firstorder.sim.exact.edges import kl
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.scene import MODES
from firstorder.sim.model.truncation import FLOOR

MIN_P = 0.1
GRAPH = {"world": "graph", "task": "chain", "vocab": 4, "positions": 2, "right": 1, "prompts": 2}


def restricted(mu, *others):
    """The softmax of log-probs over the tokens that μ keeps, by hand: probabilities, 0 on the rest."""
    p = mu.exp()
    keep = p >= MIN_P * p.max(-1, keepdim=True).values
    made = [torch.where(keep, x.exp(), 0.0) for x in (mu, *others)]
    return [x / x.sum(-1, keepdim=True) for x in made]


@pytest.fixture
def passes(small, make_scene):
    """The scene unpruned and pruned, stale and with replay."""
    changes = {"staleness": 1, "lr": 2.0, "direction": "natural"}
    return make_scene(small(**changes)), make_scene(small(**changes, min_p=MIN_P))


def test_both_engines_are_restricted_to_what_the_rollout_engine_keeps(passes, same):
    whole, left = passes
    out = left.mu_old.logp == FLOOR
    assert 0.1 < out.double().mean() < 0.6
    for mode in MODES:
        mu, old, target = restricted(whole.mu_old.logp, whole.old[mode].logp, whole.target[mode].logp.detach())
        for found, wanted in ((left.mu_old, mu), (left.old[mode], old), (left.target[mode], target)):
            same(found.logp.detach().exp(), wanted)
            assert torch.equal(found.logp == FLOOR, out)
        same(kl(left.mu_old.logp, left.old[mode].logp), torch.special.xlogy(mu, mu / old.where(old > 0, 1.0)).sum(-1))


def test_values_and_updates_are_those_of_the_restricted_policies(small, make_scene, make_recipe, same):
    whole, left = make_scene(small()), make_scene(small(min_p=MIN_P))
    mu, pi = restricted(whole.mu_old.logp, whole.target["disabled"].logp)
    world = whole.world
    same(objectives.value(left.mu_old.logp, world), objectives.value(mu.log(), world))
    found = objectives.value(left.target["disabled"].logp, world)
    wanted = objectives.value(pi.detach().log(), world)
    same(found, wanted)
    recipe = make_recipe("minirl-no-is", "advantage.baseline=none", "about.scope=token")
    found = Measurement(scene=left, recipe=recipe).update
    # E_μ[R Σ ∇ log π] by autograd through the probabilities of what is left
    paths = world.every
    log = torch.where(pi > 0, pi, 1.0).log().flatten(1)[:, paths.path.long()]
    chance = torch.where(paths.mask, mu.flatten(1)[:, paths.path.long()], 1.0).prod(-1) / world.prompts
    total = (chance * paths.rewards * torch.where(paths.mask, log, 0.0).sum(-1)).sum()
    slopes = torch.autograd.grad(total, list(whole.weights.values()))
    same(found, torch.cat([slope.flatten(1) for slope in slopes], dim=1), 1e-9)


def test_without_pruning_nothing_changes(small, make_scene):
    plain, zero = make_scene(small()), make_scene(small(min_p=0.0))
    for mode in MODES:
        assert torch.equal(plain.target[mode].logp, zero.target[mode].logp)
    assert torch.equal(plain.mu_old.logp, zero.mu_old.logp)


def test_pruning_in_the_graph_is_that_of_the_tree(small, make_scene, make_recipe, same):
    graph = make_scene(small(**GRAPH, min_p=0.6))
    tree = make_scene(small(**GRAPH | {"world": "tree"}, min_p=0.6))
    assert (graph.mu_old.logp == FLOOR).any()
    recipe = make_recipe("minirl")
    updates = [Measurement(scene=scene, recipe=recipe).update for scene in (graph, tree)]
    same(*updates, 1e-9)


def test_readings_are_those_of_what_is_left(small, make_scene):
    found = make_scene(small(**GRAPH, min_p=0.6, reading_noise=0.1, draws=4), modes=("disabled",))
    out = found.mu_old.logp == FLOOR
    off = (found.readings.logp - found.mu_old.logp[:, None]).abs().amax(1)
    assert out.any()
    assert (off < 0.2).all()


def test_an_engine_that_is_drawn_at_every_token_has_no_tail_to_prune(small, make_scene):
    fresh = {"numerics": {"kind": "noise", "scale": 0.2, "fresh": True}, "draws": 2}
    with pytest.raises(ConfigError, match=r"sim.min_p = 0.1 leaves out the tail of one engine, but sim.numerics.fresh"):
        make_scene(small(**fresh, min_p=MIN_P), modes=("disabled",))
