"""`firstorder report`: figures, their data and one page from run folders."""

from __future__ import annotations

from collections.abc import Iterator

import typer

from firstorder.cli.api import report as api
from firstorder.cli.progress import shown


def report(
    runs: list[str] = typer.Argument(
        metavar="RUN...|SWEEP",
        help="Run folders that `firstorder train` wrote, or the folder of one sweep or of `validate --training`.",
    ),
    out: str = typer.Option(..., "--out", metavar="DIR", help="A new or empty folder for the page, figures and data."),
    open_: bool = typer.Option(False, "--open", help="Open the page in the browser."),
    watch: bool = typer.Option(
        False,
        "--watch",
        help="Write the page again whenever the runs have logged more, until they are finished or Ctrl-C is pressed; "
        "the page loads itself again until then.",
    ),
) -> None:
    """Compare runs, cells of a sweep or runs of the training claims: report.html, PNG and SVG figures, data as CSV."""
    with shown("report"):
        for number, result in enumerate(_results(runs, out, watch)):
            typer.echo(str(result))
            if open_ and number == 0:
                api.open_page(result.page)


def _results(runs: list[str], out: str, watch: bool) -> Iterator[api.ReportResult]:
    if not watch:
        yield api.report(*runs, out=out)
        return
    from firstorder.cli.api.watch import watch as watched

    yield from watched(*runs, out=out)
