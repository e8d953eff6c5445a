"""`firstorder train`: a recipe on a backend, into a run folder that can be resumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from firstorder.cli import complete, output
from firstorder.cli.api import train as api
from firstorder.cli.progress import shown
from firstorder.cli.track import SINKS

if TYPE_CHECKING:
    from firstorder.cli.api.train import TrainResult


def train(
    recipe: str = typer.Argument(
        autocompletion=complete.recipes, help="A shipped recipe (`firstorder recipes` lists them) or a TOML file."
    ),
    set_: list[str] = typer.Option(
        [], "--set", metavar="A.B=V", autocompletion=complete.settings, help="Override one setting; repeat for more."
    ),
    backend: str = typer.Option("sim", "--backend", help="Where to train: sim, or torchtitan (with vLLM rollouts)."),
    settings: str | None = typer.Option(
        None, "--settings", metavar="FILE", help="TOML whose sections are laid over the recipe's, before --set."
    ),
    out: str | None = typer.Option(None, "--out", metavar="DIR", help="The run folder; runs/NAME unless given."),
    resume: bool = typer.Option(False, "--resume", help="Go on from the folder's newest checkpoint."),
    strict: bool = typer.Option(False, "--strict", help="Refuse a recipe with parts that cannot act."),
    track: list[str] = typer.Option(
        [], "--track", metavar="SINK", help=f"Show the run in {', '.join(SINKS)} as well; repeat for more."
    ),
    alarm: str | None = typer.Option(
        None,
        "--alarm",
        metavar="watch|stop",
        help="Say on stderr what warns of a collapse, and write alarms.jsonl; with stop, end the run there, "
        "with the step saved and exit code 3.",
    ),
    dump: bool = typer.Option(False, "--dump", help="Write the batch of every step into DIR/dump, for audit."),
    dump_format: str | None = typer.Option(
        None, "--dump-format", metavar="FORM", help="The same as neutral (Parquet, unless given), or prime-rl."
    ),
) -> None:
    """Train a recipe: sample, score, update, sync the weights, with metrics and receipts of every step."""
    run(
        lambda: api.train(
            recipe,
            set_,
            backend=backend,
            settings=settings,
            out=out,
            resume=resume,
            strict=strict,
            track=track,
            alarm=alarm,
            dump=dump_format or ("neutral" if dump else None),
        )
    )


def run(training: Callable[[], TrainResult]) -> None:
    """Run a training with its progress, and say how it ended; an interruption ends with its own code."""
    from firstorder.core.training.interrupt import Interrupted

    quiet = os.environ.get("RANK", "0") != "0"  # of the ranks that torchrun starts only the first one speaks
    try:
        with output.notes_told(), shown("train", quiet=quiet):
            result = training()
    except Interrupted as stopped:
        raise typer.Exit(stopped.code) from None
    if not quiet:
        for line in result.ended.lines():
            typer.echo(line)
