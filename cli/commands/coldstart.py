"""`firstorder coldstart`: a small MoE that can learn, in minutes on a CPU."""

from __future__ import annotations

import typer

from firstorder.cli.api import coldstart as api
from firstorder.cli.progress import shown


def coldstart(
    style: str = typer.Argument(help="How demonstrations are written: direct, reversed or steps."),
    out: str = typer.Option(..., "--out", metavar="DIR", help="A new or empty folder for the model."),
    steps: int | None = typer.Option(
        None, "--steps", min=1, max=1_000_000, help="Supervised steps; by style unless given."
    ),
    seed: int = typer.Option(
        0, "--seed", min=0, max=2**63 - 1, help="Of the initial weights and of the demonstrations."
    ),
) -> None:
    """Build a small Qwen3-MoE with its tokenizer and train it on generated demonstrations of a small task."""
    with shown("coldstart"):
        loss = api.coldstart(style, out=out, steps=steps, seed=seed)
    typer.echo(f"{out}: loss {loss:.4g} nats/token")
