"""Cells of a grid, and the ensembles in which they are trained.

A sweep's folder holds a run folder for every finished cell, `cells/NAME`, and one for every ensemble at work,
`ensembles/NAME`, with checkpoints of its own. A finished ensemble is cut into its cells, and each appears whole or not
at all: what is in `cells` is finished.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TextIO

import torch

from firstorder.core.errors import DataError, DiskError
from firstorder.core.runs.files import to_json, write_whole
from firstorder.core.runs.logs import LOGS, Line, whole
from firstorder.core.settings.grid import titled
from firstorder.core.settings.toml import dump
from firstorder.core.training.session import Session
from firstorder.sim.training.session import SimRun, start

STOPPED = "stopped.txt"  # in a cell's folder: why it has no more steps


@dataclass(frozen=True, kw_only=True)
class Cell(SimRun):
    """One point of a grid, with its number in the grid for a name, and what it trains."""

    name: str
    point: dict[str, Any]

    @property
    def title(self) -> str:
        """The cell for people."""
        return f"cell {self.name} ({titled(self.point)})"

    def finished(self, out: Path) -> bool:
        """Whether the sweep's folder holds it."""
        return (out / "cells" / self.name).is_dir()


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Cells that share the `[sim]` section and the schedule, as arms of one batched computation; a job of a pool."""

    remedy: ClassVar[str] = "lower sim.members or free memory and go on with --resume"
    cells: tuple[Cell, ...]
    out: Path

    @property
    def title(self) -> str:
        """Its cell, or the first of them."""
        more = len(self.cells) - 1
        return self.cells[0].title + (f" and {more} more" if more else "")

    @property
    def path(self) -> Path:
        """Its run folder while it is at work; other cells, another folder."""
        names = [cell.name for cell in self.cells]
        return self.out / "ensembles" / f"{names[0]}-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:12]}"

    @property
    def steps(self) -> int:
        """Steps of the schedule."""
        return self.cells[0].recipe.schedule.steps

    def split(self) -> list[Ensemble]:
        """Its halves, which find the cell that stops the others; none for a single cell."""
        half = len(self.cells) // 2
        return [replace(self, cells=part) for part in (self.cells[:half], self.cells[half:])] if half else []

    def progress(self) -> tuple[int, int]:
        """The process at work and the steps it has done; (0, 0) before it starts."""
        try:
            process, steps = self._lock.read_text(encoding="utf-8").split()
        except (OSError, ValueError):
            return 0, 0
        return int(process), int(steps)

    def run(self, threads: int) -> None:
        """Train from the newest checkpoint, then put every cell into its place.

        Raises:
            DataError: a step failed, and there are several cells that may be the cause; a single cell is put into
                its place as far as it went.
            DiskError: the sweep cannot be recorded.
        """
        torch.set_num_threads(threads)
        try:
            with self._alone() as counter:
                if not all(cell.finished(self.out) for cell in self.cells):
                    self._train(counter)
                self._lock.unlink(missing_ok=True)
        except OSError as error:
            raise DiskError(f"cannot write to {self.out}: {error.strerror}; free some space, then --resume") from None

    def _train(self, counter: TextIO) -> None:
        session = self._start()
        _count(counter, session.first)
        reason = None
        try:
            session.run(lambda log: _count(counter, log.step + 1))
        except DiskError:
            raise
        except DataError as error:
            if len(self.cells) > 1:
                raise
            reason = str(error)
        self._publish(reason)
        shutil.rmtree(self.path, ignore_errors=True)

    def _start(self) -> Session:
        sim = self.cells[0].sim
        config = {"sim": sim.model_dump(), "cells": {cell.name: cell.recipe.model_dump() for cell in self.cells}}
        resume = (self.path / "config.toml").is_file()
        return start([cell.recipe for cell in self.cells], sim, self.path, config, resume=resume)

    def _publish(self, reason: str | None) -> None:
        """Cut the logs into the cells' own; every cell's folder is moved to its place when it is whole."""
        target, members = self.out / "cells", self.cells[0].sim.members
        steps = self.steps if reason is None else 0
        remedy = f"remove {self.path}, and its cells are trained again"
        logged = {name: whole(self.path / f"{name}.jsonl", steps, remedy) for name in LOGS}
        target.mkdir(exist_ok=True)
        for place, cell in enumerate(self.cells):
            partial = self.path / f"cell-{cell.name}"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            write_whole(partial / "config.toml", dump(cell.settings()))
            for name, entries in logged.items():
                lines = _columns(entries, slice(place * members, (place + 1) * members))
                write_whole(partial / f"{name}.jsonl", "".join(lines))
            if reason is not None:
                write_whole(partial / STOPPED, reason + "\n")
            if not cell.finished(self.out):
                os.replace(partial, target / cell.name)

    @property
    def _lock(self) -> Path:
        return self.path.with_name(f"{self.path.name}.lock")

    @contextmanager
    def _alone(self) -> Iterator[TextIO]:
        """Wait until no other process works on these cells, such as one that outlives its sweep for a moment."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


def _count(counter: TextIO, steps: int) -> None:
    """Say in the lock's file who is at work and how far."""
    counter.seek(0)
    counter.truncate()
    counter.write(f"{os.getpid()} {steps}")
    counter.flush()


def _columns(logged: Iterable[Line], members: slice) -> Iterator[str]:
    """The lines of a log with some of its members; one member's numbers stand alone, as in a run of one policy."""
    for line in logged:
        values = {key: value if isinstance(value, list) else [value] for key, value in line.items() if key != "step"}
        cut = {key: value[members] for key, value in values.items()}
        step = {"step": line["step"]}
        yield to_json(step | {key: v[0] if len(v) == 1 else v for key, v in cut.items()}, indent=None)
