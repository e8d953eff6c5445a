"""`firstorder validate`: the paper's claims with verdicts and numbers."""

from __future__ import annotations

import typer

from firstorder.cli import complete, output
from firstorder.cli.api import validate as api
from firstorder.cli.progress import shown


def validate(
    training: bool = typer.Option(False, "--training", help="The claims about training, on ensembles of runs."),
    quick: bool = typer.Option(False, "--quick", help="Fewer policies and draws: a first look."),
    only: list[str] = typer.Option(
        [], "--only", metavar="ID", autocompletion=complete.claims, help="Settle this claim only; repeat for more."
    ),
    expect: str | None = typer.Option(None, "--expect", metavar="FILE", help="Compare verdicts with a record."),
    json: str | None = typer.Option(None, "--json", metavar="FILE", help="Write JSON to FILE, or to stdout for -."),
    out: str | None = typer.Option(None, "--out", metavar="DIR", help="Keep the runs of --training, and go on there."),
) -> int:
    """Settle the paper's claims exactly: theorems must hold, empirical claims get a verdict."""
    output.check_target(json)
    with shown("validate"):
        result = api.validate(only=only, training=training, quick=quick, expect=expect, out=out)
    output.show(result, json)
    return 0 if result.passed else 1
