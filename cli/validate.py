"""`firstorder validate`: the paper's claims with verdicts and numbers."""

from __future__ import annotations

import typer


def validate(
    quick: bool = typer.Option(False, "--quick", help="Fewer draws and policies: a first look within 20 s."),
) -> None:
    """Settle the paper's claims exactly: theorems must hold, empirical claims get a verdict."""
