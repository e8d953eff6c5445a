"""`firstorder sweep`: a grid of training runs, as ensembles first, then over processes."""

from __future__ import annotations

import typer

from firstorder.cli import complete, output
from firstorder.cli.api import sweep as api
from firstorder.cli.progress import shown


def sweep(
    recipe: str = typer.Argument(
        autocompletion=complete.recipes,
        help="The base: a shipped recipe (`firstorder recipes` lists them) or a TOML file.",
    ),
    grid_: list[str] = typer.Option(
        ..., "--grid", metavar="A.B=V1,V2", help="An axis; repeat for more. `recipe=NAME1,NAME2` is one of recipes."
    ),
    set_: list[str] = typer.Option(
        [], "--set", metavar="A.B=V", autocompletion=complete.settings, help="Override one setting of all cells."
    ),
    executor: str = typer.Option("local", "--executor", help="local, or ray."),
    out: str | None = typer.Option(None, "--out", metavar="DIR", help="The sweep's folder; sweeps/NAME unless given."),
    resume: bool = typer.Option(False, "--resume", help="Train what is missing in the folder of the same grid."),
    strict: bool = typer.Option(False, "--strict", help="Refuse a grid with a cell whose parts cannot all act."),
) -> None:
    """Train every cell of a grid, an ensemble of seeds each, into one table."""
    with output.notes_told(), shown("sweep"):
        result = api.sweep(recipe, grid_, set_, executor=executor, out=out, resume=resume, strict=strict)
    typer.echo(result.title)
