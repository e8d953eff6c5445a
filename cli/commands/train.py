"""`firstorder train`: a recipe on a backend, into a run folder that can be resumed."""

from __future__ import annotations

import os
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import typer

from firstorder.cli.api.compose import compose, compose_engines
from firstorder.cli.progress import shown

if TYPE_CHECKING:
    from firstorder.core.runs.track import Opener, Sink, Tracked, Tracker
    from firstorder.core.training.loop import StepLog

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
    """Train a recipe: sample, score, update, sync the weights, with metrics and receipts of every step."""
    from firstorder.backends.ranks import all_reduce_max, is_rank0
    from firstorder.core.errors import ConfigError
    from firstorder.core.runs.track import Tracker
    from firstorder.core.training.inert import check_strict
    from firstorder.core.training.interrupt import Interrupted
    from firstorder.core.training.loop import described

    openers = _openers(track)
    if backend not in ("sim", "torchtitan"):
        raise ConfigError(f"--backend must be sim or torchtitan, got {backend!r}")
    composed = compose if backend == "sim" else compose_engines
    method, *sections = composed(recipe, set_, settings)
    module = _module(backend)
    idle = module.inert(method, *sections)
    if strict:
        check_strict(idle)
    folder = Path(out or f"runs/{Path(recipe).stem}")
    with shown("train", quiet=not is_rank0()):
        training = module.prepare(method, *sections, folder, resume=resume)
    for line in idle:
        typer.echo(f"inert: {line}", err=True)
    try:
        tracker = Tracker(training.folder, openers if is_rank0() else {}, described(training.backend), _complain)
        for name, sink in tracker.sinks.items():
            typer.echo(f"{name}: {sink.place}", err=True)
        try:
            with shown("train", quiet=not is_rank0()):
                _with_progress(module, training, tracker)
        finally:
            tracker.close()
    except Interrupted as stopped:
        all_reduce_max(0)  # ranks leave together: torchrun kills those that are left when one has failed
        if is_rank0():
            typer.echo(f"{folder}: {stopped.name} after step {stopped.step - 1}, saved; go on with --resume", err=True)
        raise typer.Exit(stopped.code) from None
    except KeyboardInterrupt:
        typer.echo(f"{folder}: go on with --resume", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{folder}: {method.schedule.steps} steps")


def _module(backend: str) -> ModuleType:
    """What prepares and runs trainings on a backend."""
    if backend == "sim":
        from firstorder.sim.training import session as simulated

        return simulated
    from firstorder.backends import session as engines

    return engines


def _openers(names: list[str]) -> dict[str, Opener]:
    """What opens each sink, by name; its library is there, but not imported yet.

    Raises:
        ConfigError: an unknown sink, or one whose extra is not installed.
    """
    from firstorder.core.errors import ConfigError
    from firstorder.core.settings.toml import nearest

    for name in names:
        if name not in SINKS:
            raise ConfigError(f"no sink --track {name}; {nearest(name, SINKS)}sinks: {', '.join(SINKS)}")
        if find_spec(name) is None:
            raise ConfigError(f"--track {name} needs its library; pip install 'firstorder[{name}]'")
    return {name: partial(_open, name) for name in names}


def _open(name: str, run: Tracked) -> Sink:
    """Import the module of a sink and open it."""
    found: Sink = getattr(import_module(f"firstorder.cli.track.{name}"), SINKS[name])(run)
    return found


def _complain(line: str) -> None:
    typer.echo(f"firstorder: {line}", err=True)


def _with_progress(module: ModuleType, training: Any, tracker: Tracker) -> None:
    from firstorder.backends.ranks import is_rank0
    from firstorder.core.progress import tell
    from firstorder.core.runs.logs import lines
    from firstorder.core.training.interrupt import deferred

    def done(log: StepLog) -> None:
        metrics, receipts = lines(log)
        tracker.log(metrics | receipts)
        means = {name: float(log.metrics[name].mean()) for name in ("reward", "kl", "update/entropy")}
        note = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        tell("train", log.step + 1, training.steps, note)

    tell("train", training.first, training.steps)
    with deferred(_heard if is_rank0() else lambda name: None) as asked:
        module.run(training, done, asked)


def _heard(name: str) -> None:
    again = "; Ctrl-C again stops at once" if name == "SIGINT" else ""
    os.write(2, f"\nfirstorder: {name}: the step is finished and saved first{again}\n".encode())
