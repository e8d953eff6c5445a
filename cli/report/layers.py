"""What replay did in each MoE layer, over all steps of a run, and which parts of its recipe could not act."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from firstorder.core.training import inert, replay

from .rows import Cell, Row
from .runs import Run

SHOWN = {
    "rows_replayed": "rows replayed",
    "rows_changed": "rows changed by replay",
    "routes_missing": "routes missing",
    "routes_repeated": "routes repeated",
}


def layer_table(runs: Sequence[Run]) -> list[Row]:
    """A row for each run and layer: means over its steps and members; none where nothing was logged."""
    rows: list[Row] = []
    for run in runs:
        layer = 0
        while f"{replay.PREFIX}rows_replayed{replay.LAYER}{layer}" in run.logged:
            values: dict[str, Cell] = {
                f"{title} [share of tokens]": _mean(run, f"{replay.PREFIX}{name}{replay.LAYER}{layer}")
                for name, title in SHOWN.items()
            }
            rows.append({"run": run.label, "MoE layer": str(layer)} | values)
            layer += 1
    return rows


def idle_parts(run: Run) -> list[str]:
    """The parts of its recipe that could not act in its schedule."""
    return [
        name.removeprefix("inert/")
        for name in inert.QUANTITIES
        if name in run.logged and bool((run.logged[name].values == 1).any())
    ]


def _mean(run: Run, name: str) -> Cell:
    values = run.logged[name].values if name in run.logged else np.empty(0)
    return float(np.nanmean(values)) if np.isfinite(values).any() else ""
