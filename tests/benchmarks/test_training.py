"""What an ensemble saves, and what the loop costs beside the forward and backward that it cannot do without."""

import os

import pytest
import torch

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm
from firstorder.core.training.loop import train
from firstorder.sim.config import Sim
from firstorder.sim.model.policy import load
from firstorder.sim.sampling.sequences import score
from firstorder.sim.training.backend import SimBackend

MEMBERS, STEPS = 64, 3
SIM = Sim(vocab=6, horizon=5, pool=16)
SETTINGS = [f"schedule.steps={STEPS}", "schedule.prompts=4", "schedule.group_size=8", "optimizer.lr=0.003"]


def arm(members):
    return (Arm(recipe=toml.build(Recipe, toml.override(toml.read("minirl-r3"), SETTINGS)), members=members),)


def trained(seeds):
    backend = SimBackend(SIM, arm(len(seeds)), torch.tensor(seeds))
    backend.evaluate = lambda step: {}  # exact evaluations are off the training path
    train(arm(len(seeds)), backend)
    return backend


@pytest.fixture
def members(benchmarking):
    return int(os.environ.get("FIRSTORDER_MEMBERS", MEMBERS)) if benchmarking else 4


def test_an_ensemble_beside_its_runs_one_after_another(in_turns, members):
    in_turns(
        rounds=7,
        an_ensemble=lambda: trained(list(range(members))),
        its_runs_one_after_another=lambda: [trained([seed]) for seed in range(members)],
    )


def test_a_training_step_beside_its_forward_and_backward(in_turns, members):
    backend = SimBackend(SIM, arm(members), torch.arange(members))
    tokens = backend.rollout(0).tokens

    def bare():
        for _ in range(STEPS):
            leaves = {name: w.detach().requires_grad_() for name, w in backend.weights.items()}
            logp = score(load(leaves, backend.engines.pi, SIM), tokens).logp
            torch.autograd.grad(logp.sum(), list(leaves.values()))

    in_turns(bare_forward_and_backward=bare, a_training_step_of_64=lambda: trained(list(range(members))))
