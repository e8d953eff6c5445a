"""A training run in the simulator, of one policy or an ensemble of seeds: its settings, checks, engines and folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from firstorder.core import memory
from firstorder.core.errors import ConfigError, SizeError
from firstorder.core.method.recipe import Recipe, check_runs
from firstorder.core.method.stored import resolved, resolved_each
from firstorder.core.threads import sized, threads
from firstorder.core.training.arms import Arm
from firstorder.core.training.loop import check_trainable, logged_quantities
from firstorder.core.training.session import ALONE, Session, opened
from firstorder.sim.checks import check_replay
from firstorder.sim.config import Sim
from firstorder.sim.exact import agree
from firstorder.sim.exact.groups import check_levels
from firstorder.sim.exact.memory import check_memory
from firstorder.sim.exact.scene import grow
from firstorder.sim.exact.size import check_size
from firstorder.sim.model.chunks import numbers

from .backend import SimBackend
from .expected import check_update


@dataclass(frozen=True, kw_only=True)
class SimRun:
    """A recipe in the simulator: a `core.training.session.TrainingRun`.

    Args:
        recipe: method, schedule and optimiser.
        sim: the simulator; `sim.members` policies are trained at once, seeds counting up from `sim.seed`.
    """

    recipe: Recipe
    sim: Sim
    ranks = ALONE

    def settings(self) -> dict[str, Any]:
        """The resolved configuration, nested tables."""
        return self.recipe.model_dump() | {"sim": self.sim.model_dump()}

    def inert(self) -> list[str]:
        """The parts of the recipe that cannot act in its schedule, one sentence each."""
        return agree.inert(self.recipe, self.sim, stale=self.recipe.schedule.minibatches > 1)

    def check(self) -> None:
        """Refuse what cannot be trained, before anything is written.

        Raises:
            ConfigError: the recipe cannot be trained here.
            SizeError: the responses to the measured prompts are too many to enumerate.
        """
        check_runs(self.recipe)
        check_replay(self.recipe, self.sim)
        check_trainable(self.recipe)
        check_update(self.recipe, self.sim)
        check_memory(self.sim, self.sim.members, memory.available(), self.recipe.schedule)
        if self.sim.evaluate_every:
            try:
                check_size(self.sim, self.sim.members * self.sim.passes, memory.available())
                check_baseline(self.recipe, self.sim)
            except (SizeError, ConfigError) as error:
                raise type(error)(f"{error}, or set sim.evaluate_every=0 to train without exact evaluations") from None
        if self.sim.update == "expected":
            pool = self.sim.model_copy(update={"prompts": self.sim.training_prompts})
            try:
                check_size(pool, self.sim.members * self.sim.passes, memory.available())
                check_baseline(self.recipe, pool)
            except (SizeError, ConfigError) as error:
                raise type(error)(f"{error}, or lower sim.pool, or set sim.update=sampled") from None

    def prepare(self, out: Path, *, resume: bool = False, changeable: Collection[str] = ()) -> Session:
        """Check everything, open the run folder and restore its newest checkpoint.

        Args:
            out: the folder.
            resume: go on in it.
            changeable: dotted keys that may have other values on resuming.

        Raises:
            ConfigError: the recipe cannot be trained here, or the folder cannot be used.
            SizeError: the responses to the measured prompts are too many to enumerate.
        """
        self.check()
        return start((self.recipe,), self.sim, out, self.settings(), resume=resume, changeable=changeable)


def resolved_run(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What the folder of a run, or of an ensemble of cells, was reserved for, with the keys of today."""
    whole = resolved({key: stored[key] for key in stored if key != "cells"}, {"sim": Sim})
    if "cells" not in stored:
        return whole
    return {"sim": whole["sim"], "cells": resolved_each(stored["cells"], partial(resolved, sections={}))}


@sized(lambda recipes, sim, *_, **__: _numbers(recipes, sim))
def start(
    recipes: Sequence[Recipe],
    sim: Sim,
    out: Path,
    config: dict[str, Any],
    *,
    resume: bool,
    changeable: Collection[str] = (),
) -> Session:
    """Recipes that share a schedule as the arms of one ensemble, at the newest checkpoint of their folder.

    Args:
        recipes: one an arm; each is followed by `sim.members` policies, seeds counting up from `sim.seed`.
        sim: the simulator that all arms share.
        out: the run folder.
        config: the configuration that the folder is for.
        resume: go on in a folder of this configuration.
        changeable: as of `SimRun.prepare`.
    """
    arms = tuple(Arm(recipe=recipe, members=sim.members) for recipe in recipes)
    with opened(out, config, resume=resume, changeable=changeable, resolved=resolved_run) as (folder, checkpoint):
        backend = SimBackend(sim, arms, (sim.seed + torch.arange(sim.members)).repeat(len(arms)))
        folder.describe(logged_quantities(backend))
        if checkpoint is not None:
            backend.load(checkpoint.state)
    return Session(
        arms=arms,
        backend=backend,
        folder=folder,
        first=0 if checkpoint is None else checkpoint.step,
        checkpoint_every=sim.checkpoint_every,
        around=partial(threads, _numbers(recipes, sim)),
    )


def _numbers(recipes: Sequence[Recipe], sim: Sim) -> int:
    """What the kernels of an update work on at once."""
    schedule, members = recipes[0].schedule, len(recipes) * sim.members
    rows = members * schedule.prompts * schedule.group_size // schedule.minibatches
    if sim.carries:
        return numbers(rows, sim.width)
    return numbers(members * sim.training_prompts * sim.places, sim.width)


def check_baseline(recipe: Recipe, sim: Sim) -> None:
    """Refuse a group baseline whose exact expectation is too long a sum, before the first evaluation meets it.

    Raises:
        ConfigError: the measured prompts have too many reward levels for the group's size.
    """
    if recipe.over_group:
        check_levels(len(grow(sim).levels), recipe.schedule.group_size - 1)
