"""Sweep folders: the cells of a grid as runs, and what is kept of each run. Shapes: M members."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from firstorder.core.errors import ConfigError
from firstorder.core.settings.grid import Axes, points
from firstorder.core.settings.toml import parse
from firstorder.sim.sweep.ensemble import STOPPED

from .catalogue import ENTROPY, KL, REWARD, Panel
from .runs import Array, Run, read_run

GRID = "grid.toml"


@dataclass(frozen=True, kw_only=True)
class CellRun:
    """What became of a cell.

    Args:
        name: its number in the grid, as its folder is called.
        point: its value on every axis.
        run: its run; None if it is not finished.
        stopped: why a finished cell made fewer steps than planned; None if it made them all.
    """

    name: str
    point: dict[str, Any]
    run: Run | None
    stopped: str | None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A grid and its cells, the last axis running fastest."""

    label: str
    axes: Axes
    cells: list[CellRun]


@dataclass(frozen=True, kw_only=True)
class Outcome(Panel):
    """A number that is kept of each member of a run; `of` gives them, `[M]`, or None where the run did not log it."""

    of: Callable[[Run], Array | None]


def _series(key: str, pick: Callable[[Array], Array]) -> Callable[[Run], Array | None]:
    """`pick`, from `[S, M]` to `[M]`, of a quantity at the steps at which it was logged."""
    return lambda run: pick(run.logged[key].values) if key in run.logged else None


def _final(values: Array) -> Array:
    return np.asarray(values[-1])


def _best(values: Array) -> Array:
    return np.asarray(values.max(axis=0))


J = REWARD[1]
OUTCOMES = (
    Outcome(
        key="final_j",
        title="final exact J",
        meaning=f"{J.key} after the last step: {J.meaning.partition(',')[0]}",
        unit=J.unit,
        of=_series(J.key, _final),
    ),
    Outcome(
        key="best_j",
        title="best exact J",
        meaning=f"the largest {J.key} of all exact evaluations",
        unit=J.unit,
        of=_series(J.key, _best),
    ),
    Outcome(
        key="lost_j",
        title="exact J lost since its best",
        meaning=f"the largest {J.key} of all exact evaluations less the one after the last step",
        unit=J.unit,
        of=_series(J.key, lambda values: _best(values) - _final(values)),
    ),
    Outcome(
        key="final_kl",
        title="final KL",
        meaning=f"{KL[0].key} of the last step's batch, {KL[0].meaning}",
        unit=KL[0].unit,
        source=KL[0].source,
        heavy=True,
        of=_series(KL[0].key, _final),
    ),
    Outcome(
        key="final_entropy",
        title="final entropy",
        meaning=f"{ENTROPY.key} of the last step's batch: {ENTROPY.meaning}",
        unit=ENTROPY.unit,
        of=_series(ENTROPY.key, _final),
    ),
)


def outcome(cell: CellRun, quantity: Outcome) -> Array | None:
    """The outcome of a cell's members, `[M]`; a run that stopped early or did not log it has none."""
    return None if cell.run is None or cell.stopped is not None else quantity.of(cell.run)


def is_sweep(path: Path) -> bool:
    """Whether a folder is a sweep's."""
    return (path / GRID).is_file()


def read_sweep(path: Path) -> Sweep:
    """A sweep, finished or not.

    Raises:
        ConfigError: the grid or a run cannot be read, or no cell is finished.
    """
    file = path / GRID
    try:
        axes: Axes = parse(file)["grid"]
    except (ConfigError, KeyError) as error:
        raise ConfigError(f"{file} cannot be read: {error}; give another sweep") from None
    cells = [_cell(path, f"{number:04d}", point) for number, point in enumerate(points(axes))]
    if all(cell.run is None for cell in cells):
        raise ConfigError(f"{path} holds no finished cell yet; let the sweep finish one first")
    return Sweep(label=path.resolve().name, axes=axes, cells=cells)


def _cell(path: Path, name: str, point: dict[str, Any]) -> CellRun:
    folder = path / "cells" / name
    if not folder.is_dir():
        return CellRun(name=name, point=point, run=None, stopped=None)
    file = folder / STOPPED
    stopped = file.read_text(encoding="utf-8").strip() if file.is_file() else None
    return CellRun(name=name, point=point, run=read_run(folder, name), stopped=stopped)
