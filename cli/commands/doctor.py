"""`firstorder doctor`: what is installed, what the machine has, and what will not work."""

from __future__ import annotations

import typer

from firstorder.cli import output
from firstorder.cli.api import doctor as api


def doctor(
    json: str | None = typer.Option(None, "--json", metavar="FILE", help="Write JSON to FILE, or to stdout for -."),
) -> int:
    """Say what is installed, what the machine has, and what will not work here, with the command that mends it.

    Exit code 0: the core works and what is installed fits; 1: something does not.
    """
    output.check_target(json)
    result = api.doctor()
    output.show(result, json)
    return 0 if result.passed else 1
