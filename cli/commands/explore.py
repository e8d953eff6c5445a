"""`firstorder explore`: the explorer as one HTML file."""

from __future__ import annotations

import typer

from firstorder.cli.api import explore as api


def explore(
    out: str = typer.Option(api.OUT, "--out", metavar="FILE", help="The HTML file to write."),
    show: bool = typer.Option(False, "--open", help="Open it in the browser."),
) -> None:
    """Write one page, which needs no network: which replay a regime asks for, and a tiny policy token by token."""
    typer.echo(str(api.explore(out, show=show)))
