"""`firstorder train`: a recipe on a backend, into a run folder that can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .compose import compose

if TYPE_CHECKING:
    from firstorder.core.loop import StepLog
    from firstorder.core.recipe import Recipe
    from firstorder.sim.config import Sim


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
    from firstorder.sim.training import inert

    if backend != "sim":
        raise ConfigError(f"--backend must be sim, got {backend!r}")
    method, sim = compose(recipe, set_)
    for line in inert(method, sim):
        if strict:
            raise ConfigError(f"--strict: {line}; change the recipe or drop --strict")
        typer.echo(f"inert: {line}", err=True)
    folder = Path(out or f"runs/{method.about.name}")
    try:
        _with_progress(method, sim, folder, resume=resume)
    except KeyboardInterrupt:
        typer.echo(f"firstorder: interrupted; go on with --resume --out {folder}", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{folder}: {method.schedule.steps} steps")


def _with_progress(method: Recipe, sim: Sim, folder: Path, *, resume: bool) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from firstorder.sim.training import run as train_sim

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=method.schedule.steps)

        def done(log: StepLog) -> None:
            shown = {name: float(log.metrics[name].mean()) for name in ("reward", "kl", "update/entropy")}
            text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            progress.update(bar, completed=log.step + 1, description=text)

        train_sim(method, sim, folder, resume=resume, done=done)
