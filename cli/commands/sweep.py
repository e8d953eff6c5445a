"""`firstorder sweep`: a grid of training runs, as ensembles first, then over processes."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from firstorder.cli.api.compose import RECIPE, grid
from firstorder.cli.progress import shown

if TYPE_CHECKING:
    from firstorder.cli.report.sweeps import CellRun
    from firstorder.core.errors import FirstOrderError
    from firstorder.core.settings.grid import Axes
    from firstorder.sim.sweep.ensemble import Cell


def sweep(
    recipe: str = typer.Argument(help="The base: a shipped recipe (`firstorder recipes` lists them) or a TOML file."),
    grid_: list[str] = typer.Option(
        ..., "--grid", metavar="A.B=V1,V2", help="An axis; repeat for more. `recipe=NAME1,NAME2` is one of recipes."
    ),
    set_: list[str] = typer.Option([], "--set", metavar="A.B=V", help="Override one setting of all cells."),
    executor: str = typer.Option("local", "--executor", help="local, or ray."),
    out: str | None = typer.Option(None, "--out", metavar="DIR", help="The sweep's folder; sweeps/NAME unless given."),
    resume: bool = typer.Option(False, "--resume", help="Train what is missing in the folder of the same grid."),
    strict: bool = typer.Option(False, "--strict", help="Refuse a grid with a cell whose parts cannot all act."),
) -> None:
    """Train every cell of a grid, an ensemble of seeds each, into one table."""
    from firstorder.cli.report.sweeps import GRID, read_sweep
    from firstorder.cli.report.tables import check_parquet, write_tables
    from firstorder.core.runs.folder import reserve
    from firstorder.sim.sweep.plan import train
    from firstorder.sim.sweep.pool import check_executor, open_executor

    check_executor(executor)
    check_parquet()
    with shown("sweep"):
        axes, cells = grid(recipe, set_, grid_)
    if strict:
        _check_strict(cells)
    folder = Path(out or f"sweeps/{Path(recipe).stem}").resolve()
    with reserve(folder / GRID, _config(recipe, axes, cells), resume=resume):
        _tell_inert(cells)
        missing = [cell for cell in cells if not cell.finished(folder)]
        try:
            if missing:
                with shown("sweep"):
                    train(missing, folder, open_executor(executor))
        except KeyboardInterrupt:
            typer.echo(f"{folder}: go on with --resume", err=True)
            raise typer.Exit(130) from None
        shutil.rmtree(folder / "ensembles", ignore_errors=True)
        done = read_sweep(folder)
        write_tables(done, folder)
    stopped = [cell for cell in done.cells if cell.stopped is not None]
    if stopped:
        raise _stopped(stopped, cells, folder)
    typer.echo(f"{folder}: {len(cells)} cells, {len(missing)} of them trained now")


def _config(recipe: str, axes: Axes, cells: Sequence[Cell]) -> dict[str, Any]:
    """What a sweep's folder belongs to: the axes, and all settings of the first cell of each recipe."""
    first = {cell.point.get(RECIPE, recipe): cell.settings() for cell in reversed(cells)}
    return {"grid": dict(axes), "first": dict(reversed(first.items()))}


def _tell_inert(cells: Sequence[Cell]) -> None:
    """Every part that cannot act, once, with the number of cells."""
    found = Counter(line for cell in cells for line in cell.inert())
    for line, count in found.items():
        typer.echo(f"inert in {count} of {len(cells)} cells: {line}", err=True)


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
