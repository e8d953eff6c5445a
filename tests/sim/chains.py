"""Small trainings where contexts merge, for the tests of training and of its expectations."""

import torch

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm, RecipeWeights, with_advantages
from firstorder.core.training.loop import train
from firstorder.sim.config import Sim
from firstorder.sim.model.policy import flatten
from firstorder.sim.training.backend import SimBackend

SETTINGS = ["schedule.steps=3", "schedule.prompts=4", "schedule.group_size=4", "optimizer.lr=0.01"]
PLAIN = ["optimizer.kind=sgd", "optimizer.max_grad_norm=inf", "optimizer.lr=1.0"]
CHAIN = {
    "world": "graph",
    "task": "chain",
    "vocab": 4,
    "horizon": 6,
    "positions": 3,
    "prompts": 2,
    "width": 8,
    "expert_width": 4,
    "experts": 4,
    "numerics": {"kind": "noise", "scale": 0.2},
    "evaluate_every": 2,
}
TASKS = {
    "horizon": {"recovery": 1, "vocab": 5, "horizon": 5},
    "answer": {"ending": "answer", "reward": "graded", "vocab": 5, "thinking": 1},
    "feedback": {"feedback": True, "turn_length": 2, "recovery": 1, "vocab": 6},
    "tree": {"world": "tree", "horizon": 3},
}
# a world that is small enough for its tree, its policy taught and then moved; and ways that its responses end
TAUGHT = {
    "task": "chain",
    "prompts": 2,
    "positions": 3,
    "vocab": 4,
    "right": 1,
    "horizon": 4,
    "layers": 2,
    "experts": 4,
    "width": 6,
    "expert_width": 4,
    "numerics": {"kind": "noise", "scale": 0.3},
    "staleness": 2,
    "lr": 0.3,
    "coldstart": "calibrated",
    "coldstart_value": 0.3,
}
ENDINGS = {
    "horizon": {},
    "answer": {"ending": "answer", "thinking": 1, "vocab": 5},
    "graded": {"ending": "answer", "reward": "graded"},
    "feedback": {"feedback": True, "turn_length": 2, "recovery": 1, "vocab": 5},
    "pruned": {"min_p": 0.05},
}


def taught(kind="horizon", world="graph", **changes):
    return Sim(world=world, **TAUGHT | ENDINGS[kind] | changes)


def sim_of(kind="horizon", **changes):
    return Sim(**(CHAIN | TASKS[kind] | changes))


def recipe(name, *more):
    return toml.build(Recipe, toml.override(toml.read(name), [*SETTINGS, *more]))


def arms_of(names, members=1, *more):
    return tuple(Arm(recipe=recipe(name, *more), members=members) for name in names)


def trained(sim, arms, seeds):
    logs, backend = [], SimBackend(sim, arms, torch.tensor(seeds))
    train(arms, backend, on_step=logs.append)
    return backend, logs


def sampled_updates(backend, arm, batches):
    """The first updates of so many batches, each from the same weights, as numbers of one vector of parameters."""
    found = []
    for step in range(batches):
        before = flatten(backend.weights).detach()
        scored, _ = backend.score(backend.rollout(step))
        state = backend.state()
        backend.update(with_advantages(scored, (arm,), arm.recipe.schedule.group_size), RecipeWeights((arm,)))
        found.append(flatten(backend.weights).detach() - before)
        backend.load(state)
    return torch.cat(found)
