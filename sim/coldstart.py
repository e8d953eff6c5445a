"""Cold start: the weights that everything begins from: random, calibrated, or distilled from demonstrations of a style.

Supervised steps on freshly drawn demonstrations to the training prompts, before anything is rolled out:

    loss = -mean over demonstrations of Σ_t log π(y_t | c_t)

in exact arithmetic, whatever engines follow, so that the start is a function of the seed and the `[sim]` section alone:
the same for `measure` and `train`, for a member alone and in any ensemble. `sim.calibration` has the calibrated one.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from firstorder.core import progress
from firstorder.core.errors import NotFiniteError
from firstorder.core.method.recipe import Optimizer

from . import optimizer
from .calibration import calibrated
from .config import Numerics, Sim
from .model import noise
from .model.numerics import arithmetic
from .model.policy import Weights, flatten, gradient, initial_weights, leaves, load, unflatten
from .sampling.sequences import score
from .tasks import WORD_TASKS
from .tasks.demonstrations import Style, demonstrator
from .tasks.task import converse, picks

LATER = (
    "world",
    "update",
    "numerics",
    "training_numerics",
    "evaluate_every",
    "checkpoint_every",
    "members",
    "seed",
    "staleness",
    "min_p",
    "sample_top_k",
    "top_p",
    "sampling_mask",
    "update_contexts",
)
"""Settings that a cold start does not read: two that differ in these alone start from the same weights."""
BATCH = 64  # demonstrations a step
SALT = 1  # keeps the random numbers of a cold start apart from those of the rollouts after it


def starting_weights(sim: Sim, seeds: Tensor) -> Weights:
    """θ before the first step, one member a seed; see `policy.initial_weights`.

    Raises:
        ConfigError: a training prompt has no correct response within the horizon, or `sim.coldstart_value` is out of
            reach.
    """
    if sim.coldstart == "none":
        return initial_weights(sim, seeds)
    unique = torch.unique(seeds)
    owner = torch.searchsorted(unique, seeds)
    alike = sim.model_copy(update={name: Sim.model_fields[name].get_default() for name in LATER})
    members = tuple(unique.tolist())
    start = _calibrated(alike, members) if sim.coldstart == "calibrated" else _distilled(alike, sim.coldstart, members)
    return {name: w[owner] for name, w in start.items()}


@lru_cache(maxsize=8)
@torch.enable_grad()
def _calibrated(sim: Sim, members: tuple[int, ...]) -> Weights:
    """`calibrated`, kept for the next who starts there."""
    return calibrated(sim, torch.tensor(members))


@lru_cache(maxsize=8)
@torch.enable_grad()
def _distilled(sim: Sim, style: Style, members: tuple[int, ...]) -> Weights:
    """Random weights after `sim.coldstart_steps` of supervised learning, kept for the next who starts there."""
    seeds = torch.tensor(members)
    weights, task = initial_weights(sim, seeds), WORD_TASKS[sim.task](sim)
    automaton = task.automaton(task.prompts(torch.arange(sim.training_prompts)).tokens)
    demonstrations = demonstrator(automaton, sim.horizon, style, sim.coldstart_share)
    settings = optimizer.settings([Optimizer(lr=sim.coldstart_lr)] * len(seeds))
    vector, own = flatten(weights), noise.combine(seeds, SALT)
    state = optimizer.start(vector)
    for step in progress.steps("cold start", range(sim.coldstart_steps)):
        rows = picks(sim.training_prompts, own, step, BATCH)
        keys = noise.combine(noise.combine(noise.mix(own)[:, None], step), torch.arange(BATCH))
        shown = converse(task, rows, *demonstrations.draw(rows, keys))
        theta = leaves(unflatten(vector, weights))
        model = load(theta, arithmetic(Numerics(), seeds), sim)
        logp = torch.where(shown.mask, score(model, shown.tokens).logp, 0.0)
        loss = -logp.sum(-1).mean(-1)
        slope, _ = optimizer.clip(gradient(loss.sum(), theta), settings)
        vector, state = optimizer.step(vector, slope, state, settings)
    if not torch.isfinite(vector).all():
        raise NotFiniteError("the weights are not finite after the cold start; lower sim.coldstart_lr")
    return unflatten(vector, weights)
