"""`firstorder train`: a recipe on a backend, into a run folder that can be resumed."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import typer

from .compose import compose, compose_engines

if TYPE_CHECKING:
    from firstorder.core.loop import StepLog
    from firstorder.core.track import Opener, Sink, Tracked, Tracker

SINKS = {"tensorboard": "TensorBoard", "wandb": "WandB", "trackio": "Trackio"}


def train(
    recipe: str = typer.Argument(help="A shipped recipe (`firstorder recipes` lists them) or a TOML file."),
    set_: list[str] = typer.Option([], "--set", metavar="A.B=V", help="Override one setting; repeat for more."),
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
) -> None:
    """Train a recipe: sample, score, update, push, with metrics and receipts of every step."""
    from firstorder.backends.ranks import first
    from firstorder.core.errors import ConfigError
    from firstorder.core.inert import check_strict
    from firstorder.core.loop import described
    from firstorder.core.track import Tracker

    openers = _openers(track)
    if backend not in ("sim", "torchtitan"):
        raise ConfigError(f"--backend must be sim or torchtitan, got {backend!r}")
    composed = compose if backend == "sim" else compose_engines
    method, *sections = composed(recipe, set_, settings)
    module = _module(backend)
    idle = module.inert(method, *sections)
    if strict:
        check_strict(idle)
    folder = Path(out or f"runs/{method.about.name}")
    training = module.prepare(method, *sections, folder, resume=resume)
    for line in idle:
        typer.echo(f"inert: {line}", err=True)
    try:
        tracker = Tracker(training.folder, openers if first() else {}, described(training.backend), _complain)
        for name, sink in tracker.sinks.items():
            typer.echo(f"{name}: {sink.place}", err=True)
        try:
            _with_progress(module, training, tracker)
        finally:
            tracker.close()
    except KeyboardInterrupt:
        typer.echo(f"{folder}: go on with --resume", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{folder}: {method.schedule.steps} steps")


def _module(backend: str) -> ModuleType:
    """What prepares and runs trainings on a backend."""
    if backend == "sim":
        from firstorder.sim import training as simulated

        return simulated
    from firstorder.backends import training as engines

    return engines


def _openers(names: list[str]) -> dict[str, Opener]:
    """What opens each sink, by name; its library is there, but not imported yet.

    Raises:
        ConfigError: an unknown sink, or one whose extra is not installed.
    """
    from firstorder.core.errors import ConfigError
    from firstorder.core.toml import nearest

    for name in names:
        if name not in SINKS:
            raise ConfigError(f"no sink --track {name}; {nearest(name, SINKS)}sinks: {', '.join(SINKS)}")
        if find_spec(name) is None:
            raise ConfigError(f"--track {name} needs its library; pip install 'firstorder[{name}]'")
    return {name: partial(_open, name) for name in names}


def _open(name: str, run: Tracked) -> Sink:
    """Import the module of a sink and open it."""
    found: Sink = getattr(import_module(f".tracking.{name}", __package__), SINKS[name])(run)
    return found


def _complain(line: str) -> None:
    typer.echo(f"firstorder: {line}", err=True)


def _with_progress(module: ModuleType, training: Any, tracker: Tracker) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from firstorder.backends.ranks import first
    from firstorder.core.run import lines

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True, quiet=not first())) as progress:
        bar = progress.add_task("", total=training.steps, completed=training.first)

        def done(log: StepLog) -> None:
            metrics, receipts = lines(log)
            tracker.log(metrics | receipts)
            shown = {name: float(log.metrics[name].mean()) for name in ("reward", "kl", "update/entropy")}
            text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            progress.update(bar, completed=log.step + 1, description=text)

        module.run(training, done)
