"""A simulated training run: arms, seeds, run folder and resume, for one policy or an ensemble of seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from firstorder.core import memory
from firstorder.core.errors import ConfigError, NotFiniteError, SizeError
from firstorder.core.finite import check_finite
from firstorder.core.method.recipe import Recipe, check_runs
from firstorder.core.runs.folder import RunFolder, check_claim
from firstorder.core.training.arms import Arm
from firstorder.core.training.interrupt import Asked, Interrupted, never
from firstorder.core.training.loop import DIVERGED, StepLog, check_trainable, described, train
from firstorder.sim.config import Sim, check_replay
from firstorder.sim.exact import agree
from firstorder.sim.exact.groups import check_levels
from firstorder.sim.exact.memory import check_memory
from firstorder.sim.exact.scene import grow
from firstorder.sim.exact.tree import check_size

from .backend import SimBackend


def inert(recipe: Recipe, sim: Sim) -> list[str]:
    """The parts of a recipe that cannot act in its schedule, one sentence each."""
    return agree.inert(recipe, sim, stale=recipe.schedule.minibatches > 1)


@dataclass(frozen=True, kw_only=True)
class Training:
    """A run that is ready to go: its arms, engines, folder and first step."""

    arms: tuple[Arm, ...]
    backend: SimBackend
    folder: RunFolder
    first: int

    @property
    def steps(self) -> int:
        """Global steps of the schedule that the arms share."""
        return self.arms[0].recipe.schedule.steps


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
    check(recipe, sim)
    return start((recipe,), sim, out, settings(recipe, sim), resume=resume)


def settings(recipe: Recipe, sim: Sim) -> dict[str, Any]:
    """The resolved configuration of a run, nested tables."""
    return recipe.model_dump() | {"sim": sim.model_dump()}


def check(recipe: Recipe, sim: Sim) -> None:
    """Refuse what cannot be trained, before anything is written; raises as `prepare` does."""
    check_runs(recipe)
    check_replay(recipe, sim)
    check_trainable(recipe)
    check_memory(sim, sim.members, memory.available(), recipe.schedule)
    if sim.evaluate_every:
        try:
            check_size(sim, sim.members, memory.available())
            check_baseline(recipe, sim)
        except (SizeError, ConfigError) as error:
            raise type(error)(f"{error}, or set sim.evaluate_every=0 to train without exact evaluations") from None


def start(recipes: Sequence[Recipe], sim: Sim, out: Path, config: dict[str, Any], *, resume: bool) -> Training:
    """Recipes that share a schedule as the arms of one ensemble, at the newest checkpoint of their folder.

    Args:
        recipes: one an arm; each is followed by `sim.members` policies, seeds counting up from `sim.seed`.
        sim: the simulator that all arms share.
        out: the run folder.
        config: what the folder is claimed for.
        resume: go on in a folder of this configuration.
    """
    check_claim(out / "config.toml", config, resume=resume)  # a cold start comes first, and may take long
    arms = tuple(Arm(recipe=recipe, members=sim.members) for recipe in recipes)
    backend = SimBackend(sim, arms, (sim.seed + torch.arange(sim.members)).repeat(len(arms)))
    folder = RunFolder(out, config, resume=resume)
    try:
        folder.describe(described(backend))
        found = folder.latest()
        if found is not None:
            backend.load(found.state)
    except BaseException:
        folder.close()
        raise
    return Training(arms=arms, backend=backend, folder=folder, first=0 if found is None else found.step)


def check_baseline(recipe: Recipe, sim: Sim) -> None:
    """Refuse a group baseline whose exact expectation is too long a sum, before the first evaluation meets it.

    Raises:
        ConfigError: the measured prompts have too many reward levels for the group's size.
    """
    if recipe.advantage.baseline != "none":
        check_levels(len(torch.unique(grow(sim)[1])), recipe.schedule.group_size - 1)


def run(training: Training, done: Callable[[StepLog], None] = lambda log: None, asked: Asked = never) -> None:
    """Train and record; `done` is called after each recorded step.

    Raises:
        NotFiniteError: a gradient, weights or a metric are not numbers; the step and the newest checkpoint are named.
        DataError: a step failed; the folder stays resumable.
        Interrupted: `asked` told of a signal; the step is saved.
    """

    after = training.first

    def record(log: StepLog) -> None:
        nonlocal after
        check_finite(log.metrics | log.receipts, DIVERGED)
        training.folder.append(log)
        after, signal = log.step + 1, asked()
        if signal or after % training.backend.sim.checkpoint_every == 0 or after == training.steps:
            training.folder.save(after, training.backend.state())
        done(log)
        if signal and after < training.steps:
            raise Interrupted(signal, after)

    try:
        train(training.arms, training.backend, training.first, record)
    except NotFiniteError as error:
        raise training.folder.stopped(error, after) from None
    finally:
        training.folder.close()
