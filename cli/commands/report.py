"""`firstorder report`: figures, their data and one page from run folders."""

from __future__ import annotations

import typer

from firstorder.cli.api import report as api
from firstorder.cli.progress import shown


def report(
    runs: list[str] = typer.Argument(
        metavar="RUN...|SWEEP",
        help="Run folders that `firstorder train` wrote, or the folder of one sweep or of `validate --training`.",
    ),
    out: str = typer.Option(..., "--out", metavar="DIR", help="A new or empty folder for the page, figures and data."),
) -> None:
    """Compare runs, cells of a sweep or runs of the training claims: report.html, PNG and SVG figures, data as CSV."""
    with shown("report"):
        result = api.report(*runs, out=out)
    typer.echo(str(result))
