"""What an ensemble saves, and what the loop costs beside the forward and backward that it cannot do without."""

import torch

from firstorder.core import toml
from firstorder.core.arms import Arm
from firstorder.core.loop import train
from firstorder.core.recipe import Recipe
from firstorder.sim.backend import SimBackend
from firstorder.sim.config import Sim
from firstorder.sim.policy import load
from firstorder.sim.sequences import score

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


def test_ensemble(record):
    record("ensemble", lambda: trained(list(range(MEMBERS))), rounds=3)


def test_one_run_after_another(record):
    record("singles", lambda: [trained([seed]) for seed in range(MEMBERS)], rounds=1, warmup=0)


def test_bare_forward_and_backward_of_the_same_tensors(record):
    backend = SimBackend(SIM, arm(MEMBERS), torch.arange(MEMBERS))
    tokens = backend.rollout(0).tokens

    def bare():
        for _ in range(STEPS):
            leaves = {name: w.detach().requires_grad_() for name, w in backend.weights.items()}
            logp = score(load(leaves, backend.engines.pi, SIM), tokens).logp
            torch.autograd.grad(logp.sum(), list(leaves.values()))

    record("bare_training", bare, rounds=3)
