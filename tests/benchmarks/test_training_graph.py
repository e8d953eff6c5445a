"""Training on contexts that merge: what a step costs beside one pass over the table and the bare sampling of tokens."""

import pytest
import torch

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm
from firstorder.core.training.loop import train
from firstorder.sim.config import Sim
from firstorder.sim.model.policy import leaves, load
from firstorder.sim.sampling.table import draw
from firstorder.sim.training.backend import SimBackend

MEMBERS, STEPS = 64, 2
SIM = Sim(world="graph", task="chain", vocab=8, positions=8, prompts=16, horizon=128)  # 256 contexts
SETTINGS = [f"schedule.steps={STEPS}", "schedule.prompts=16", "schedule.group_size=4", "optimizer.lr=0.003"]


def backend_of(members, name="minirl"):
    arms = (Arm(recipe=toml.build(Recipe, toml.override(toml.read(name), SETTINGS)), members=members),)
    return SimBackend(SIM, arms, torch.arange(members))


def trained(backend):
    evaluate, backend.evaluate = backend.evaluate, lambda step: {}  # exact evaluations are off the training path
    train(backend.arms, backend)
    backend.evaluate = evaluate


@pytest.mark.parametrize("name", ["minirl", "minirl-r3"])
def test_a_training_step_beside_a_pass_over_the_table_and_the_tokens(in_turns, benchmarking, name):
    backend = backend_of(MEMBERS if benchmarking else 2, name)
    table, batch = backend.reader.contexts, backend.rollout(0)
    assert len(table.features) == 256

    def bare():
        for _ in range(STEPS):
            theta = leaves(backend.weights)
            logp = backend.reader.score(load(theta, backend.engines.pi, SIM), batch.tokens).step.logp
            torch.autograd.grad(logp.sum(), [w for w in theta.values() if w.requires_grad])
            draw(table, logp.detach(), batch.groups, batch.groups, SIM.horizon)

    step = {f"a_training_step_of_{name}": lambda: trained(backend)}
    in_turns(rounds=5, a_pass_over_the_table_and_its_tokens=bare, **step)


def test_an_exact_evaluation_beside_a_training_step(in_turns, benchmarking):
    backend = backend_of(MEMBERS if benchmarking else 2)
    steps = backend.schedule.steps
    in_turns(
        rounds=5,
        scale=STEPS,
        a_training_step=lambda: trained(backend),
        an_exact_evaluation=lambda: backend.evaluate(steps),
    )
