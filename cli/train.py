"""`firstorder train`: a recipe on a backend, into a run folder that can be resumed."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import typer

from .compose import compose, compose_engines

if TYPE_CHECKING:
    from firstorder.core.loop import StepLog


def train(
    recipe: str = typer.Argument(help="A shipped recipe (`firstorder recipes` lists them) or a TOML file."),
    set_: list[str] = typer.Option([], "--set", metavar="A.B=V", help="Override one setting; repeat for more."),
    backend: str = typer.Option("sim", "--backend", help="Where to train: sim, or torchtitan (with vLLM rollouts)."),
    out: str | None = typer.Option(None, "--out", metavar="DIR", help="The run folder; runs/NAME unless given."),
    resume: bool = typer.Option(False, "--resume", help="Go on from the folder's newest checkpoint."),
    strict: bool = typer.Option(False, "--strict", help="Refuse a recipe with parts that cannot act."),
) -> None:
    """Train a recipe: sample, score, update, push, with metrics and receipts of every step."""
    from firstorder.core.errors import ConfigError

    if backend not in ("sim", "torchtitan"):
        raise ConfigError(f"--backend must be sim or torchtitan, got {backend!r}")
    method, *sections = compose(recipe, set_) if backend == "sim" else compose_engines(recipe, set_)
    training = _training(backend)
    idle = training.inert(method, *sections)
    if strict and idle:
        raise ConfigError(f"--strict: {idle[0]}; change the recipe or drop --strict")
    folder = Path(out or f"runs/{method.about.name}")
    ready = training.prepare(method, *sections, folder, resume=resume)
    for line in idle:
        typer.echo(f"inert: {line}", err=True)
    try:
        _with_progress(training, ready)
    except KeyboardInterrupt:
        typer.echo(f"{folder}: go on with --resume", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{folder}: {method.schedule.steps} steps")


def _training(backend: str) -> ModuleType:
    """The module that prepares and runs trainings on a backend."""
    if backend == "sim":
        from firstorder.sim import training as simulated

        return simulated
    from firstorder.backends import training as engines

    return engines


def _with_progress(training: ModuleType, ready: Any) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=ready.arm.recipe.schedule.steps, completed=ready.first)

        def done(log: StepLog) -> None:
            shown = {name: float(log.metrics[name].mean()) for name in ("reward", "kl", "update/entropy")}
            text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            progress.update(bar, completed=log.step + 1, description=text)

        training.run(ready, done)
