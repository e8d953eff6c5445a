"""`firstorder train`: a recipe on a backend, into a run folder that can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .compose import compose

if TYPE_CHECKING:
    from firstorder.core.loop import StepLog
    from firstorder.sim.training import Training


def train(
    recipe: str = typer.Argument(help="A shipped recipe (`firstorder recipes` lists them) or a TOML file."),
    set_: list[str] = typer.Option([], "--set", metavar="A.B=V", help="Override one setting; repeat for more."),
    backend: str = typer.Option("sim", "--backend", help="Where to train; sim is the one there is."),
    out: str | None = typer.Option(None, "--out", metavar="DIR", help="The run folder; runs/NAME unless given."),
    resume: bool = typer.Option(False, "--resume", help="Go on from the folder's newest checkpoint."),
    strict: bool = typer.Option(False, "--strict", help="Refuse a recipe with parts that cannot act."),
) -> None:
    """Train a recipe: sample, score, update, push, with metrics and receipts of every step."""
    from firstorder.core.errors import ConfigError
    from firstorder.sim.training import inert, prepare

    if backend != "sim":
        raise ConfigError(f"--backend must be sim, got {backend!r}")
    method, sim = compose(recipe, set_)
    idle = inert(method, sim)
    if strict and idle:
        raise ConfigError(f"--strict: {idle[0]}; change the recipe or drop --strict")
    folder = Path(out or f"runs/{method.about.name}")
    training = prepare(method, sim, folder, resume=resume)
    for line in idle:
        typer.echo(f"inert: {line}", err=True)
    try:
        _with_progress(training)
    except KeyboardInterrupt:
        typer.echo(f"{folder}: go on with --resume", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{folder}: {method.schedule.steps} steps")


def _with_progress(training: Training) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from firstorder.sim.training import run

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=training.steps, completed=training.first)

        def done(log: StepLog) -> None:
            shown = {name: float(log.metrics[name].mean()) for name in ("reward", "kl", "update/entropy")}
            text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            progress.update(bar, completed=log.step + 1, description=text)

        run(training, done)
