"""Cells trained along their exact expected updates, with no response sampled, over processes.

What `train` with `sim.update = expected` does, but for the responses that it draws for its logs: their cost grows with
the horizon, that of the expectation with its logarithm. So 32,768 tokens are tried about as fast as 512.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from firstorder.core import progress
from firstorder.core.finite import check_finite
from firstorder.core.quantities import means
from firstorder.core.runs.logs import StepLog
from firstorder.core.threads import threads as computing
from firstorder.core.training.arms import Arm
from firstorder.core.training.loop import logged_quantities
from firstorder.core.training.session import DIVERGED, opened
from firstorder.sim.model.chunks import numbers
from firstorder.sim.sweep.ensemble import Cell
from firstorder.sim.sweep.pool import open_executor, run_all
from firstorder.sim.training.backend import SimBackend


@dataclass(frozen=True, kw_only=True)
class Following:
    """One cell on its way; a job of a pool."""

    remedy: ClassVar[str] = "free memory and try again"
    cell: Cell
    out: Path

    @property
    def title(self) -> str:
        """The cell."""
        return self.cell.title

    def run(self, threads: int) -> None:
        """Train it, and leave its run folder in `cells` when it is whole."""
        sim = self.cell.sim
        torch.set_num_threads(threads)
        with computing(numbers(sim.members * sim.training_prompts * sim.places, sim.width)):
            _follow(self.cell, self.out)

    def split(self) -> Sequence[Following]:
        """It has no parts."""
        return ()


def followed(cells: Sequence[Cell], out: Path) -> None:
    """Train the cells that a folder does not hold yet, in as many processes as there are cores.

    Args:
        cells: each with `sim.update = expected` and a recipe that has an exact form there.
        out: holds a run folder for every finished cell, `cells/NAME`, whose log has every step and no samples.

    Raises:
        NotFiniteError: a gradient or weights are not numbers.
        WorkerError: a process was killed at every attempt.
    """
    missing = [Following(cell=cell, out=out) for cell in cells if not cell.finished(out)]
    if not missing:
        return
    executor = open_executor("local")

    def tick(left: Sequence[Following]) -> None:
        progress.tell("trials", len(missing) - len(left), len(missing), f"{len(left)} at work or waiting")

    try:
        executor.start(max(1, min(executor.cores, len(missing))))
        run_all(missing, executor, lambda job, nothing: None, tick)
    finally:
        executor.close()


def _follow(cell: Cell, out: Path) -> None:
    sim, schedule, partial = cell.sim, cell.recipe.schedule, out / "partial" / cell.name
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    arms = (Arm(recipe=cell.recipe, members=sim.members),)
    with opened(partial, cell.settings(), resume=False) as (folder, _):
        backend = SimBackend(sim, arms, sim.seed + torch.arange(sim.members))
        folder.describe(logged_quantities(backend))
        for step in range(schedule.steps):
            moved = [backend.follow() for _ in range(schedule.minibatches)][-1]
            backend.sync_weights()
            metrics = means(moved) | backend.evaluate(step + 1)
            check_finite(metrics, DIVERGED)
            folder.append(StepLog(step=step, metrics=metrics, receipts={}))
        folder.close()
    (out / "cells").mkdir(exist_ok=True)
    os.replace(partial, out / "cells" / cell.name)
