"""A recipe trained on a backend, into a run folder that can be resumed."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from firstorder.cli.track import openers

from .compose import compose, compose_engines
from .overrides import laid, named
from .results import Result, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table
    from rich.text import Text

    from firstorder.core.runs.logs import Line, StepLog
    from firstorder.core.runs.track import Opener
    from firstorder.core.training.session import Run, Session

    from .overrides import Overrides, Source

SCHEMA = "firstorder.train/1"
BACKENDS: Mapping[str, Callable[[Source, Overrides, str | None], Run]] = {"sim": compose, "torchtitan": compose_engines}
NOTED = ("reward", "kl", "update/entropy")  # shown beside the progress

# what a run is summed up by, where it was logged
SHOWN = ("reward", "eval/reward", "exact/j_pi", "exact/j_mu", "kl", "route/flip_rate", "update/entropy")

log = logging.getLogger("firstorder")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class TrainResult(Result):
    """A finished run: its folder, and what it logged.

    Args:
        folder: the run folder, with checkpoints, logs and what the logged names mean.
        settings: the resolved configuration, nested tables.
        inert: the parts of the recipe that cannot act, one sentence each.
        steps: one a step: `step`, and by name its metrics and receipts, a list of numbers with several members.
    """

    folder: Path
    settings: dict[str, Any]
    inert: tuple[str, ...]
    steps: list[Line]

    @property
    def title(self) -> str:
        """What the command prints."""
        return f"{self.folder}: {self.settings['schedule']['steps']} steps"

    def __fspath__(self) -> str:
        return str(self.folder)

    def blocks(self) -> Iterator[Table | Text]:
        """The folder, what the run started and ended with, and the parts that cannot act."""
        from rich.table import Table
        from rich.text import Text

        yield Text(self.title, no_wrap=True)
        table = Table(box=None, header_style="bold")
        table.add_column("quantity")
        for head in ("first", "last"):
            table.add_column(head, justify="right")
        for name in SHOWN:
            values = [_mean(line[name]) for line in self.steps if name in line]
            if values:
                table.add_row(name, f"{values[0]:.6g}", f"{values[-1]:.6g}")
        yield table
        for line in self.inert:
            yield Text(f"inert: {line}")

    def records(self) -> list[dict[str, Any]]:
        """One row a step."""
        return self.steps

    def plot(self, *others: str | os.PathLike[str], figure: str = "reward") -> Figure:
        """A figure of the report over the steps, beside the curves of other runs.

        Args:
            others: other results, or folders of runs.
            figure: its name in the report, such as reward, errors, kl, entropy or flips.

        Raises:
            ConfigError: there is no such figure of these runs, or matplotlib is not installed.
        """
        require_matplotlib()
        from firstorder.cli.report.catalogue import plots
        from firstorder.cli.report.curves import curve
        from firstorder.cli.report.figures import drawn, over_steps
        from firstorder.cli.report.runs import read_runs
        from firstorder.core.errors import ConfigError
        from firstorder.core.settings.toml import nearest

        runs = read_runs([Path(each) for each in (self, *others)])
        known = {plot.name: plot for plot in plots(runs)}
        if figure not in known:
            raise ConfigError(f"no figure {figure!r}; {nearest(figure, known)}figures: {', '.join(known)}")
        chosen = known[figure]
        curves = [found for panel in chosen.panels for run in runs if (found := curve(run, panel)) is not None]
        return drawn(lambda: over_steps(chosen, runs, curves))


def train(
    recipe: Source,
    overrides: Overrides = (),
    *,
    backend: str = "sim",
    settings: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    strict: bool = False,
    track: Sequence[str] = (),
    **keywords: Any,
) -> TrainResult:
    """Train a recipe: sample, score, update, sync the weights, with metrics and receipts of every step.

    The parts that cannot act, where a sink shows the run and why one stopped are logged under `firstorder`. Ctrl-C and
    SIGTERM let the step finish and save it first.

    Args:
        recipe: a shipped name, a TOML file, or the object.
        overrides: `{"sim.staleness": 2}` or `{"sim": {"staleness": 2}}`, or `a.b=value` assignments.
        backend: `sim`, or `torchtitan` with vLLM rollouts.
        settings: a TOML file whose sections are laid over the recipe's, before the overrides.
        out: the run folder; `runs/NAME` unless given.
        resume: go on from the folder's newest checkpoint.
        strict: refuse a recipe with parts that cannot act.
        track: sinks that show the run as well: tensorboard, wandb, trackio.
        keywords: sections, and in the simulator keys of `[sim]`: `staleness=2`, `clip={"high": 0.3}`.

    Raises:
        ConfigError: a setting, the recipe, the folder or a sink is refused; nothing is left behind.
        DataError: a step failed; the folder stays resumable.
        Interrupted: a signal asked the run to stop; the step is saved.
    """
    sinks = openers(track)
    over = None if settings is None else os.fspath(settings)
    run = composed(backend, recipe, laid(overrides, keywords, simulated=backend == "sim"), over)
    from firstorder.core.training.inert import check_strict

    inert = run.inert()
    if strict:
        check_strict(inert)
    folder = run_folder(recipe, out)
    session = run.prepare(folder, resume=resume)
    if session.ranks.is_rank0():
        for line in inert:
            log.warning("inert: %s", line)
    carry_out(session, sinks)
    return _result(folder, run, inert)


def composed(backend: str, recipe: Source, overrides: Overrides, settings: str | None) -> Run:
    """What is trained where.

    Raises:
        ConfigError: no such backend, or anything unknown, out of range or contradictory.
    """
    from firstorder.core.errors import ConfigError

    if backend not in BACKENDS:
        raise ConfigError(f"--backend must be {' or '.join(BACKENDS)}, got {backend!r}")
    return BACKENDS[backend](recipe, overrides, settings)


def run_folder(recipe: Source, out: str | os.PathLike[str] | None) -> Path:
    """The run folder: `out`, or one that is called like the recipe."""
    return Path(out or f"runs/{named(recipe)}")


def carry_out(session: Session, sinks: Mapping[str, Opener]) -> None:
    """Run a session to its end, shown in sinks, by rank 0; a signal lets the step finish."""
    from firstorder.core.progress import tell
    from firstorder.core.runs.logs import lines
    from firstorder.core.runs.track import Tracker
    from firstorder.core.training.interrupt import Interrupted, deferred
    from firstorder.core.training.loop import logged_quantities

    rank0 = session.ranks.is_rank0()
    tracker = Tracker(session.folder, sinks if rank0 else {}, logged_quantities(session.backend), log.warning)
    for name, sink in tracker.sinks.items():
        log.info("%s: %s", name, sink.place)

    def done(step: StepLog) -> None:
        metrics, receipts = lines(step)
        tracker.log(metrics | receipts)
        note = "  ".join(f"{name} {float(step.metrics[name].mean()):.4g}" for name in NOTED)
        tell("train", step.step + 1, session.steps, note)

    tell("train", session.first, session.steps)
    try:
        with closing(tracker), deferred(_heard if rank0 else lambda name: None) as asked:
            session.run(done, asked)
    except Interrupted:
        session.ranks.all_reduce_max(0)  # ranks leave together: torchrun kills those that are left when one has failed
        raise


def _heard(name: str) -> None:
    again = "; Ctrl-C again stops at once" if name == "SIGINT" else ""
    os.write(2, f"\nfirstorder: {name}: the step is finished and saved first{again}\n".encode())


def _result(folder: Path, run: Run, inert: Sequence[str]) -> TrainResult:
    from firstorder import __version__
    from firstorder.core.runs.logs import history

    settings, steps = run.settings(), list(history(folder))
    return TrainResult(
        document={
            "schema": SCHEMA,
            "version": __version__,
            "folder": str(folder),
            "settings": settings,
            "inert": list(inert),
            "steps": steps,
        },
        folder=folder,
        settings=settings,
        inert=tuple(inert),
        steps=steps,
    )


def _mean(value: Any) -> float:
    """Over members; NaN where one has none."""
    members = value if isinstance(value, list) else [value]
    return math.nan if None in members else fmean(members)
