"""The tables of a sweep, as parquet: every number of every run, and one row for each policy."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstorder.core.errors import ConfigError
from firstorder.core.runs.files import write_whole

from .runs import Array, Run, Series
from .sweeps import OUTCOMES, CellRun, Sweep, outcome

Columns = dict[str, Any]


def check_parquet() -> None:
    """Refuse to start a sweep whose table could not be written.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    try:
        import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError("sweep writes parquet with pyarrow; pip install 'firstorder[sweep]'") from None


def write_tables(sweep: Sweep, out: Path) -> None:
    """Write `sweep.parquet` and `summary.parquet`, each whole or not at all."""
    finished = [(cell, cell.run) for cell in sweep.cells if cell.run is not None]
    _write(out / "sweep.parquet", [_point(cell) | _steps(run) for cell, run in finished])
    _write(out / "summary.parquet", [_point(cell) | _summary(cell, run) for cell, run in finished])


def _point(cell: CellRun) -> Columns:
    """What is the same in all rows of a cell."""
    return {"cell": int(cell.name)} | cell.point


def _steps(run: Run) -> Columns:
    """A row for each member and step: `seed`, `step`, and all that both logs hold, NaN where they do not."""
    logged = [series.steps for series in run.logged.values()]
    steps = np.unique(np.concatenate([*logged, np.empty(0, dtype=np.int64)]))
    columns: Columns = {"seed": np.repeat(seeds(run), len(steps)), "step": np.tile(steps, run.members)}
    return columns | {name: _filled(series, steps).T.ravel() for name, series in run.logged.items()}


def _summary(cell: CellRun, run: Run) -> Columns:
    """A row for each member of a run."""
    columns: Columns = {"seed": seeds(run), "steps": np.full(run.members, run.steps), "stopped": cell.stopped}
    for each in OUTCOMES:
        values = outcome(cell, each)
        columns[each.key] = np.full(run.members, np.nan) if values is None else values
    return columns


def seeds(run: Run) -> NDArray[np.int64]:
    """The seed of every member, `[M]`."""
    return np.arange(run.members, dtype=np.int64) + int(run.config["sim.seed"])


def _filled(series: Series, steps: NDArray[np.int64]) -> Array:
    """A quantity at all steps, `[S, M]`, NaN where it was not logged."""
    filled = np.full((len(steps), series.values.shape[1]), np.nan)
    filled[np.searchsorted(steps, series.steps)] = series.values
    return filled


def _write(file: Path, parts: list[Columns]) -> None:
    """One table from the columns of every cell; a value that is no array stands in all of the cell's rows."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    tables = []
    for columns in parts:
        rows = len(columns["seed"])
        arrays = {
            name: arrow.array(column if isinstance(column, np.ndarray) else [column] * rows, from_pandas=True)
            for name, column in columns.items()
        }
        tables.append(arrow.table(arrays))
    whole = arrow.concat_tables(tables, promote_options="permissive")
    fields = [field.with_type(arrow.string()) if field.type == arrow.null() else field for field in whole.schema]
    buffer = arrow.BufferOutputStream()
    parquet.write_table(whole.cast(arrow.schema(fields)), buffer)
    write_whole(file, buffer.getvalue().to_pybytes())
