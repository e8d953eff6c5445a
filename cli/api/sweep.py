"""A grid of training runs, as ensembles first, then over processes."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compose import RECIPE
from .compose import grid as composed
from .overrides import laid, named
from .results import Result, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table
    from rich.text import Text

    from firstorder.cli.report.sweeps import CellRun, Sweep
    from firstorder.core.errors import FirstOrderError
    from firstorder.core.settings.grid import Axes
    from firstorder.sim.sweep.ensemble import Cell

    from .overrides import Overrides, Source

SCHEMA = "firstorder.sweep/1"

log = logging.getLogger("firstorder")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class SweepResult(Result):
    """A finished sweep: its folder, its axes, and every cell with its run.

    Args:
        folder: the sweep's folder, with `sweep.parquet` (a row a step) and `summary.parquet` (a row a policy).
        sweep: the axes, and the cells with all that their runs logged.
        trained: how many cells were trained by this call; the others had finished before.
    """

    folder: Path
    sweep: Sweep
    trained: int

    @property
    def title(self) -> str:
        """The sweep in a line."""
        return f"{self.folder}: {len(self.sweep.cells)} cells, {self.trained} of them trained now"

    def __fspath__(self) -> str:
        return str(self.folder)

    def blocks(self) -> Iterator[Table | Text]:
        """Where it is, and the outcomes of every cell."""
        import numpy as np
        from rich.table import Table
        from rich.text import Text

        from firstorder.cli.report.curves import estimate
        from firstorder.cli.report.sweeps import OUTCOMES

        yield Text(self.title, no_wrap=True)
        table = Table(box=None, header_style="bold")
        for head in ("cell", *self.sweep.axes):
            table.add_column(head)
        for each in OUTCOMES:
            table.add_column(each.key, justify="right")
        for cell in self.document["cells"]:
            values = [np.array(cell[each.key]) for each in OUTCOMES]
            means = [float(estimate(each[None])[0][0]) for each in values]
            numbers = ["" if math.isnan(mean) else f"{mean:.4g}" for mean in means]
            table.add_row(cell["cell"], *map(str, cell["point"].values()), *numbers)
        yield table

    def records(self) -> list[dict[str, Any]]:
        """A row for each policy: cell, its value on every axis, seed, steps, why it stopped early, outcomes."""
        from firstorder.cli.report.sweeps import OUTCOMES

        return [
            {"cell": cell["cell"], **cell["point"], "seed": seed, "steps": cell["steps"], "stopped": cell["stopped"]}
            | {each.key: cell[each.key][place] for each in OUTCOMES}
            for cell in self.document["cells"]
            for place, seed in enumerate(cell["seeds"])
        ]

    def plot(self, outcome: str = "final_j") -> Figure:
        """The phase diagram of an outcome.

        Raises:
            ConfigError: there is no such outcome, or matplotlib is not installed.
        """
        require_matplotlib()
        from firstorder.cli.report.figures import drawn
        from firstorder.cli.report.phase import estimates, figure
        from firstorder.cli.report.sweeps import OUTCOMES
        from firstorder.core.errors import ConfigError
        from firstorder.core.settings.toml import nearest

        known = {each.key: each for each in OUTCOMES}
        if outcome not in known:
            raise ConfigError(f"no outcome {outcome!r}; {nearest(outcome, known)}outcomes: {', '.join(known)}")
        wanted = known[outcome]
        return drawn(lambda: figure(self.sweep, wanted, estimates(self.sweep, wanted)))


def sweep(
    recipe: Source,
    grid: Overrides,
    overrides: Overrides = (),
    *,
    executor: str = "local",
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    strict: bool = False,
    **keys: Any,
) -> SweepResult:
    """Train every cell of a grid, an ensemble of seeds each, into one table.

    Args:
        recipe: the base: a shipped name, a TOML file, or a recipe.
        grid: lists of values by dotted key, `{"clip.high": [0.2, 0.3]}`; `recipe` is an axis of recipes.
        overrides: settings of all cells by dotted key.
        executor: local, or ray.
        out: the sweep's folder; `sweeps/NAME` unless given.
        resume: train what is missing in the folder of the same grid.
        strict: refuse a grid with a cell whose parts cannot all act.
        keys: `members=8`, a key of `[sim]`, or `schedule={"steps": 50}`, keys of a section.

    Raises:
        ConfigError: an axis, a cell, the folder or the executor is refused; nothing is written.
        SizeError: a cell's responses are too many to enumerate.
        DataError: cells stopped early; the others and the tables are complete.
    """
    from firstorder.cli.report.sweeps import GRID, read_sweep
    from firstorder.cli.report.tables import check_parquet, write_tables
    from firstorder.core.runs.folder import reserve
    from firstorder.sim.sweep.plan import train
    from firstorder.sim.sweep.pool import check_executor, open_executor

    started = time.perf_counter()
    check_executor(executor)
    check_parquet()
    axes, cells = composed(recipe, laid(overrides, keys), grid)
    if strict:
        _check_strict(cells)
    folder = Path(out or f"sweeps/{named(recipe)}").resolve()
    with reserve(folder / GRID, _config(recipe, axes, cells), resume=resume, resolved=_resolved):
        _tell_inert(cells)
        missing = [cell for cell in cells if not cell.finished(folder)]
        try:
            if missing:
                train(missing, folder, open_executor(executor))
        except KeyboardInterrupt as interrupted:
            interrupted.add_note(f"{folder}: go on with --resume")
            raise
        shutil.rmtree(folder / "ensembles", ignore_errors=True)
        done = read_sweep(folder)
        write_tables(done, folder)
    stopped = [cell for cell in done.cells if cell.stopped is not None]
    if stopped:
        raise _stopped(stopped, cells, folder)
    document = _document(done, folder, len(missing), time.perf_counter() - started)
    return SweepResult(document=document, folder=folder, sweep=done, trained=len(missing))


def _config(recipe: Source, axes: Axes, cells: Sequence[Cell]) -> dict[str, Any]:
    """What a sweep's folder belongs to: the axes, and all settings of the first cell of each recipe."""
    base = recipe if isinstance(recipe, str) else named(recipe)
    first = {cell.point.get(RECIPE, base): cell.settings() for cell in reversed(cells)}
    return {"grid": dict(axes), "first": dict(reversed(first.items()))}


def _resolved(stored: dict[str, Any]) -> dict[str, Any]:
    """What a sweep's folder belongs to, with the keys of today."""
    from firstorder.core.method.stored import resolved_each
    from firstorder.sim.training.session import resolved_run

    return stored | {"first": resolved_each(stored.get("first", {}), resolved_run)}


def _tell_inert(cells: Sequence[Cell]) -> None:
    """Every part that cannot act, once, with the number of cells."""
    counts = Counter(line for cell in cells for line in cell.inert())
    for line, count in counts.items():
        log.info("inert in %d of %d cells: %s", count, len(cells), line)


def _check_strict(cells: Sequence[Cell]) -> None:
    """Refuse the first cell with a part that cannot act."""
    from firstorder.core.training.inert import check_strict

    for cell in cells:
        check_strict(cell.inert(), f"{cell.title}: ")


def _stopped(stopped: Sequence[CellRun], cells: Sequence[Cell], folder: Path) -> FirstOrderError:
    """The error of a sweep some of whose cells could not be trained to their end."""
    from firstorder.core.errors import DataError
    from firstorder.core.settings.grid import titled

    first = stopped[0]
    return DataError(
        f"{folder}: {len(stopped)} of {len(cells)} cells stopped early, the first of them {first.name} "
        f"({titled(first.point)}): {first.stopped}; the others and the tables are complete"
    )


def _document(done: Sweep, folder: Path, trained: int, seconds: float) -> dict[str, Any]:
    from firstorder import __version__

    return {
        "schema": SCHEMA,
        "version": __version__,
        "seconds": seconds,
        "folder": str(folder),
        "grid": dict(done.axes),
        "trained": trained,
        "cells": [_cell(cell) for cell in done.cells],
    }


def _cell(cell: CellRun) -> dict[str, Any]:
    """A cell of the document: where it stands, and by name the outcomes of its members, NaN where there are none."""
    from firstorder.cli.report.sweeps import OUTCOMES, outcome
    from firstorder.cli.report.tables import seeds

    assert cell.run is not None  # every cell of a finished sweep has one
    members = seeds(cell.run).tolist()
    values: Mapping[str, Any] = {each.key: outcome(cell, each) for each in OUTCOMES}
    return {
        "cell": cell.name,
        "point": cell.point,
        "seeds": members,
        "steps": cell.run.steps,
        "stopped": cell.stopped,
    } | {key: [math.nan] * len(members) if each is None else each.tolist() for key, each in values.items()}
