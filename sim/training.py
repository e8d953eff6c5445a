"""A simulated training run: arms, seeds, run folder and resume, for one policy or an ensemble of seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from firstorder.core.arms import Arm
from firstorder.core.errors import ConfigError, SizeError
from firstorder.core.loop import StepLog, train
from firstorder.core.recipe import Recipe, inert_parts
from firstorder.core.run import RunFolder

from .backend import SimBackend
from .config import Sim, check_replay
from .groups import check_levels
from .measure import available_memory, check_runs
from .scene import grow
from .tree import check_size


def inert(recipe: Recipe, sim: Sim) -> list[str]:
    """The parts of a recipe that cannot act in its schedule, one sentence each."""
    return inert_parts(recipe, stale=recipe.schedule.minibatches > 1, mismatch=sim.numerics != sim.training_numerics)


@dataclass(frozen=True, kw_only=True)
class Training:
    """A run that is ready to go: its arm, engines, folder and first step."""

    arm: Arm
    backend: SimBackend
    folder: RunFolder
    first: int


def prepare(recipe: Recipe, sim: Sim, out: Path, *, resume: bool = False) -> Training:
    """Check everything, open the run folder and restore its newest checkpoint.

    Args:
        recipe: method, schedule and optimiser.
        sim: the simulator; `sim.members` policies are trained at once, seeds counting up from `sim.seed`.
        out: the run folder.
        resume: go on from its newest checkpoint.

    Raises:
        ConfigError: the recipe cannot be trained here, or the folder cannot be used.
        SizeError: the responses to the measured prompts are too many to enumerate.
    """
    check_runs(recipe)
    check_replay(recipe, sim)
    check_trainable(recipe)
    if sim.evaluate_every:
        try:
            check_size(sim, sim.members, available_memory())
            check_baseline(recipe, sim)
        except (SizeError, ConfigError) as error:
            raise type(error)(f"{error}, or set sim.evaluate_every=0 to train without exact evaluations") from None
    arm = Arm(recipe=recipe, members=sim.members)
    backend = SimBackend(sim, (arm,), sim.seed + torch.arange(sim.members))
    folder = RunFolder(out, recipe.model_dump() | {"sim": sim.model_dump()}, resume=resume)
    found = folder.latest() if resume else None
    if found is not None:
        backend.load(found[1])
    return Training(arm=arm, backend=backend, folder=folder, first=0 if found is None else found[0])


def check_trainable(recipe: Recipe) -> None:
    """Refuse a weight that needs more than sampled rollouts carry.

    Raises:
        ConfigError: it reads whole distributions or router log-probs.
    """
    if recipe.correction.kind in ("max_kl", "router_shift"):
        raise ConfigError(
            f"correction.kind = {recipe.correction.kind} reads more than the log-probs of sampled tokens, which is all "
            "that a rollout carries; `firstorder measure` judges it, or set another correction.kind"
        )


def check_baseline(recipe: Recipe, sim: Sim) -> None:
    """Refuse a group baseline whose exact expectation is too long a sum, before the first evaluation meets it.

    Raises:
        ConfigError: the measured prompts have too many reward levels for the group's size.
    """
    if recipe.advantage.baseline != "none":
        check_levels(len(torch.unique(grow(sim)[1])), recipe.schedule.group_size - 1)


def run(training: Training, done: Callable[[StepLog], None] = lambda log: None) -> None:
    """Train and record; `done` is called after each recorded step.

    Raises:
        DataError: a step failed; the folder stays resumable.
    """
    steps = training.arm.recipe.schedule.steps

    def record(log: StepLog) -> None:
        training.folder.append(log)
        after = log.step + 1
        if after % training.backend.sim.checkpoint_every == 0 or after == steps:
            training.folder.save(after, training.backend.state())
        done(log)

    train((training.arm,), training.backend, training.first, record)
