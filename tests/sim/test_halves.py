"""The gradients of two halves of a mini-batch, beside an update that they must not touch."""

import pytest
import torch

from firstorder.core.method.recipe import Recipe
from firstorder.core.method.surrogate import token_weights
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm, with_advantages
from firstorder.core.training.backend import split
from firstorder.core.training.loop import train
from firstorder.sim.config import Sim
from firstorder.sim.model.policy import flatten, leaves, load
from firstorder.sim.training.backend import SimBackend

NAME = "update/half_batch_cosine"
SIM = Sim(vocab=4, horizon=3, prompts=2, pool=6, width=8, expert_width=8, evaluate_every=2)
GRAPH = Sim(**SIM.model_dump() | {"world": "graph", "task": "chain", "coldstart": "calibrated", "coldstart_value": 0.5})


def arm(name, *more):
    small = ["schedule.steps=3", "schedule.prompts=5", "schedule.group_size=4", "optimizer.lr=0.01"]
    return Arm(recipe=toml.build(Recipe, toml.override(toml.read(name), [*small, *more])), members=2)


def trained(one, sim):
    backend, logs = SimBackend(sim, (one,), torch.tensor([5, 6])), []
    train((one,), backend, on_step=logs.append)
    return backend, logs


def slow(backend, one, number=0):
    """cos(g_1, g_2) of a mini-batch of the first step, each half from a graph and a backward of its own."""
    scored = with_advantages(backend.score(backend.rollout(0))[0], (one,), 4)
    mini = list(split(scored, one.recipe.schedule.minibatches))[number]
    rows = mini.batch.rewards.shape[-1]
    first = rows // 4 // 2 * 4
    weight = token_weights(mini.stats(mini.logp_old), one.recipe).weight
    slopes = []
    for cut in (slice(first), slice(first, rows)):
        theta = leaves(backend.weights)
        model = load(theta, backend.engines.pi, backend.sim)
        scores = backend.reader.score(model, mini.batch.tokens, mini.replay)
        kept = mini.batch.mask[:, cut]
        (weight[:, cut] * torch.where(kept, scores.logp[:, cut], 0.0)).sum().backward()
        slopes.append(flatten({key: w.grad for key, w in theta.items() if w.grad is not None}))
    a, b = slopes
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


@pytest.mark.parametrize("sim", [SIM, GRAPH], ids=["sequences", "table"])
@pytest.mark.parametrize("name", ["minirl", "minirl-r3", "gspo", "dapo"])
def test_it_is_the_cosine_of_two_gradients_by_prompt(name, sim):
    one = arm(name, "schedule.steps=1")
    backend, logs = trained(one, sim)
    expected = slow(SimBackend(sim, (one,), backend.seeds), one)
    assert (expected.abs() > 1e-3).all()
    torch.testing.assert_close(logs[0].metrics[NAME], expected, rtol=1e-8, atol=1e-10)


def test_mini_batches_are_averaged():
    one = arm("minirl", "schedule.steps=1", "schedule.prompts=12", "schedule.minibatches=2", "optimizer.lr=1e-12")
    _, logs = trained(one, SIM)
    fresh = SimBackend(SIM, (one,), torch.tensor([5, 6]))  # which the first update hardly moves
    expected = (slow(fresh, one, 0) + slow(fresh, one, 1)) / 2
    torch.testing.assert_close(logs[0].metrics[NAME], expected, rtol=1e-8, atol=1e-10)


def test_only_steps_that_are_evaluated_have_it_and_no_weight_knows():
    one = arm("minirl-r3-n2", "schedule.prompts=4")
    with_it, logs = trained(one, SIM)
    assert [NAME in log.metrics for log in logs] == [False, True, True]  # every second step, and the last
    assert [NAME in log.metrics for log in logs] == ["exact/j_pi" in log.metrics for log in logs]
    without, others = trained(one, SIM.model_copy(update={"evaluate_every": 0}))
    assert not any(NAME in log.metrics for log in others)
    assert all(torch.equal(w, without.weights[key]) for key, w in with_it.weights.items())


def test_what_has_no_halves_has_no_cosine():
    alone = arm("minirl", "schedule.prompts=2", "schedule.minibatches=2")
    assert not any(NAME in log.metrics for log in trained(alone, SIM)[1])
    exact = SIM.model_copy(update={"update": "expected"})
    logs = trained(arm("minirl"), exact)[1]
    assert "exact/j_pi" in logs[-1].metrics
    assert not any(NAME in log.metrics for log in logs)


def test_halves_without_a_gradient_have_no_angle():
    one = arm("minirl", "schedule.steps=1")
    backend = SimBackend(SIM, (one,), torch.tensor([5, 6]))
    scored = with_advantages(backend.score(backend.rollout(1))[0], (one,), 4)
    sums = backend.update(scored, lambda stats: torch.zeros_like(stats.logp_theta))
    assert (sums[NAME][0] == 0).all()
    assert (sums[NAME][1] == 1).all()
