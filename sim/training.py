"""A simulated training run: arms, seeds, run folder and resume, for one policy or an ensemble of seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from firstorder.core.arms import Arm
from firstorder.core.loop import StepLog, train
from firstorder.core.recipe import Recipe, inert_parts
from firstorder.core.run import RunFolder

from .backend import SimBackend
from .config import Sim, check_replay
from .measure import check_runs


def inert(recipe: Recipe, sim: Sim) -> list[str]:
    """The parts of a recipe that cannot act in its schedule, one sentence each."""
    return inert_parts(recipe, stale=recipe.schedule.minibatches > 1, mismatch=sim.numerics != sim.training_numerics)


def run(
    recipe: Recipe, sim: Sim, out: Path, *, resume: bool = False, done: Callable[[StepLog], None] = lambda log: None
) -> None:
    """Train and record.

    Args:
        recipe: method, schedule and optimiser.
        sim: the simulator; `sim.members` policies are trained at once, seeds counting up from `sim.seed`.
        out: the run folder.
        resume: go on from its newest checkpoint.
        done: called after each recorded step.

    Raises:
        ConfigError: the recipe cannot be trained here, or the folder cannot be used.
        DataError: a step failed; the folder stays resumable.
    """
    check_runs(recipe)
    check_replay(recipe, sim)
    arm = Arm(recipe=recipe, members=sim.members)
    backend = SimBackend(sim, (arm,), sim.seed + torch.arange(sim.members))
    folder = RunFolder(out, recipe.model_dump() | {"sim": sim.model_dump()}, resume=resume)
    first = 0
    if resume and (found := folder.latest()) is not None:
        first, state = found
        backend.load(state)

    def record(log: StepLog) -> None:
        folder.append(log)
        after = log.step + 1
        if after % sim.checkpoint_every == 0 or after == recipe.schedule.steps:
            folder.save(after, backend.state())
        done(log)

    train((arm,), backend, first, record)
