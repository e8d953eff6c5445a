"""`firstorder keys`: the settings there are, and what each means."""

from __future__ import annotations

import typer

from firstorder.cli import complete, output
from firstorder.cli.api import keys as api


def keys(
    prefix: str = typer.Argument(
        "",
        autocompletion=complete.prefixes,
        help="A section, such as clip; or one key, such as clip.high; all unless given.",
    ),
    json: str | None = typer.Option(None, "--json", metavar="FILE", help="Write JSON to FILE, or to stdout for -."),
) -> None:
    """List what --set takes: every key with its default, its values and what it means; of one key, all about it."""
    output.check_target(json)
    output.show(api.keys(prefix), json)
