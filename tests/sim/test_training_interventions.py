"""What can be taken out of a training run: contexts that only failing responses visit, and a part of the step."""

import pytest
import torch

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.step_scale import effective_share, log_weights
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm
from firstorder.core.training.loop import train
from firstorder.sim.config import Sim
from firstorder.sim.exact.edges import vjp
from firstorder.sim.exact.measurement import Measurement, token_stats
from firstorder.sim.exact.scene import build
from firstorder.sim.tasks.places import ON, places
from firstorder.sim.training.backend import SimBackend
from firstorder.sim.training.expected import check_update, training_world

CHAIN = {
    "world": "graph",
    "task": "chain",
    "vocab": 4,
    "horizon": 5,
    "positions": 3,
    "prompts": 2,
    "width": 8,
    "expert_width": 4,
    "experts": 4,
    "numerics": {"kind": "noise", "scale": 0.5},
    "update": "expected",
    "evaluate_every": 0,
}


def sim_of(**changes):
    return Sim(**(CHAIN | changes))


def arm(name, *more, members=2):
    small = ["schedule.steps=2", "schedule.prompts=4", "schedule.group_size=4", "schedule.minibatches=2"]
    return Arm(recipe=toml.build(Recipe, toml.override(toml.read(name), [*small, *more])), members=members)


def trained(sim, *arms):
    seeds = torch.arange(arms[0].members).repeat(len(arms))
    logs, backend = [], SimBackend(sim, arms, seeds)
    train(arms, backend, on_step=logs.append)
    return backend, logs


def test_an_update_from_contexts_on_the_chain_leaves_the_others_out(same):
    # without the ratio of the engines the mean of A > 0 and A < 0 off the chain is a bias, with it 0
    backend = SimBackend(sim_of(update_contexts="on_chain"), (arm("minirl-no-is"),), torch.arange(2))
    u, _ = backend.expectation.update(backend.weights, backend.weights)
    scene = build(backend.sim, training_world(backend.sim), backend.engines, backend.weights, modes=["disabled"])
    measured = Measurement(scene=scene, recipe=backend.arms[0].recipe)
    coefficients, at = measured.coefficients().clone(), places(backend.sim, torch.arange(2))
    off = at.mode != ON
    assert 0 < off.sum() < len(off)
    assert (coefficients[:, off] != 0).any()
    coefficients[:, off] = 0.0
    same(u, vjp(scene.target["disabled"], coefficients, scene.weights))
    assert not torch.allclose(u, measured.update)


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"update": "sampled"}, "sim.update = sampled, sim.task = chain and sim.world = graph"),
        ({"world": "tree", "horizon": 3}, "sim.update = expected, sim.task = chain and sim.world = tree"),
        ({"world": "tree", "task": "sum"}, "sim.update = expected, sim.task = sum and sim.world = tree"),
    ],
)
def test_contexts_are_refused_where_none_is_off_a_chain(changes, got):
    with pytest.raises(ConfigError, match=f"update_contexts = on_chain needs .*, got {got}; set expected, chain and"):
        check_update(arm("minirl").recipe, sim_of(update_contexts="on_chain", **changes))


@pytest.mark.parametrize("mode", ["disabled", "R3"])
def test_the_effective_share_is_that_of_all_responses_enumerated(mode, same):
    sim = sim_of(world="tree", horizon=3)
    backend = SimBackend(sim, (arm("minirl"),), torch.arange(2))
    scene = build(sim, training_world(sim), backend.engines, backend.weights, modes=[mode])
    recipe = arm("minirl", f"router_replay.mode={mode}").recipe
    found = Measurement(scene=scene, recipe=recipe).effective_share
    log, p = log_weights(token_stats(scene, recipe)), scene.measure
    same(found, (p * log.exp()).sum(-1) ** 2 / (p * (2 * log).exp()).sum(-1), 1e-10)
    assert (found < 0.999).all()
    graph = sim.model_copy(update={"world": "graph"})
    scene = build(graph, training_world(graph), backend.engines, backend.weights, modes=[mode])
    same(found, Measurement(scene=scene, recipe=recipe).effective_share, 1e-10)


@pytest.mark.parametrize("update", ["expected", "sampled"])
def test_a_scaled_step_is_the_plain_one_times_the_scale(update, same):
    once = ("schedule.steps=1", "schedule.minibatches=1")
    sim = sim_of(update=update)
    plain, (quiet,) = trained(sim, arm("minirl", *once))
    scaled, (log,) = trained(sim, arm("minirl", *once, "optimizer.step_scale=ess"))
    start = SimBackend(sim, (arm("minirl"),), torch.arange(2))._vector()
    scale = log.metrics["update/step_scale"]
    assert ((scale > 0) & (scale < 0.9999)).all()
    same(scaled._vector() - start, scale[:, None] * (plain._vector() - start), 1e-9)
    assert "update/step_scale" not in quiet.metrics
    assert "update/step_scale" in scaled.quantities.keys() - plain.quantities.keys()


def test_the_scale_of_a_sample_is_that_of_its_own_weights(same):
    sim = sim_of(update="sampled")
    once = ("schedule.steps=1", "schedule.minibatches=1", "optimizer.step_scale=ess")
    backend, (log,) = trained(sim, arm("minirl", *once))
    fresh = SimBackend(sim, backend.arms, torch.arange(2))
    batch = fresh.rollout(0)
    scored, _ = fresh.score(batch)
    apart = torch.where(batch.mask, scored.logp_old - batch.logp_mu, 0.0).sum(-1)
    same(log.metrics["update/step_scale"], effective_share(apart).sqrt())


def test_an_arm_that_does_not_scale_is_as_it_is_alone():
    sim = sim_of(update="sampled")
    together, logs = trained(sim, arm("minirl"), arm("minirl", "optimizer.step_scale=ess"))
    alone, _ = trained(sim, arm("minirl"))
    torch.testing.assert_close(together._vector()[:2], alone._vector(), rtol=1e-10, atol=1e-12)
    assert (logs[-1].metrics["update/step_scale"][:2] == 1).all()
