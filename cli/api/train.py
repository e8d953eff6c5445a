"""A recipe trained on a backend, into a run folder that can be resumed."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from firstorder.cli.track import openers

from .compose import compose, compose_engines
from .ended import Ended, ended
from .overrides import laid, named
from .results import Result, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table
    from rich.text import Text

    from firstorder.core.method.recipe import Recipe
    from firstorder.core.runs.alarm_table import Table as Alarms
    from firstorder.core.runs.logs import Line, StepLog
    from firstorder.core.runs.track import Opener
    from firstorder.core.training.backend import Scored
    from firstorder.core.training.session import Session, TrainingRun

    from .overrides import Overrides, Source

SCHEMA = "firstorder.train/1"
BACKENDS: Mapping[str, Callable[[Source, Overrides, str | None], TrainingRun]] = {
    "sim": compose,
    "torchtitan": compose_engines,
}
NOTED = ("reward", "kl", "update/entropy")  # beside the progress
STOP = "stop"
ALARMS = ("watch", STOP)
# what sums a run up, where it was logged
SUMMED = ("reward", "eval/reward", "exact/j_pi", "exact/j_mu", "kl", "route/flip_rate", "update/entropy")

log = logging.getLogger("firstorder")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class TrainResult(Result):
    """A finished run: its folder, and what it logged.

    Args:
        folder: the run folder, with the configuration, logs and checkpoints.
        recipe: as resolved.
        inert: the parts of it that cannot act, one sentence each.
        steps: one a step: `step`, and its metrics and receipts by name, a list of numbers with several members.
        ended: what became of it, what it took, and what to do next.
    """

    folder: Path
    recipe: Recipe
    inert: list[str]
    steps: list[Line]
    ended: Ended

    def __fspath__(self) -> str:
        return str(self.folder)

    def blocks(self) -> Iterator[Table | Text]:
        """How it ended, what it began and ended with (the mean over members), and the parts that cannot act."""
        from rich.table import Table
        from rich.text import Text

        for line in self.ended.lines():
            yield Text(line, no_wrap=True)
        table = Table(box=None, header_style="bold")
        table.add_column("quantity")
        table.add_column("first", justify="right")
        table.add_column("last", justify="right")
        for name in SUMMED:
            means = [_mean(line[name]) for line in self.steps if name in line]
            if means:
                table.add_row(name, f"{means[0]:.6g}", f"{means[-1]:.6g}")
        yield table
        yield from (Text(f"inert: {line}", style="yellow") for line in self.inert)

    def records(self) -> list[dict[str, Any]]:
        """A row for each step: its metrics and receipts."""
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
        from firstorder.cli.report.figures import drawn
        from firstorder.cli.report.panels import over_steps
        from firstorder.cli.report.runs import read_runs
        from firstorder.core.errors import ConfigError
        from firstorder.core.settings.toml import nearest

        runs = read_runs([Path(each) for each in (self, *others)])
        known = {plot.name: plot for plot in plots(runs)}
        if figure not in known:
            raise ConfigError(f"no figure {figure!r}; {nearest(figure, known)}figures: {', '.join(known)}")
        chosen = known[figure]
        curves = [line for panel in chosen.panels for run in runs if (line := curve(run, panel)) is not None]
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
    alarm: str | None = None,
    dump: str | None = None,
    **keys: Any,
) -> TrainResult:
    """Train a recipe: sample, score, update, sync the weights, with metrics and receipts of every step.

    Parts that cannot act, and where sinks show the run, are logged. Ctrl-C and SIGTERM let the step finish and save it.
    Alarms that start, and those that are over, are logged and written to `alarms.jsonl`.

    Args:
        recipe: a shipped name, a TOML file, or a recipe.
        overrides: settings by dotted key, `{"clip.high": 0.3}`.
        backend: sim, or torchtitan (with vLLM rollouts).
        settings: a TOML file whose sections are laid over the recipe's, before the overrides.
        out: the run folder; `runs/NAME` unless given.
        resume: go on from the folder's newest checkpoint.
        strict: refuse a recipe with parts that cannot act.
        track: sinks that show the run as well: tensorboard, wandb, trackio.
        alarm: watch what warns of a collapse, or stop at an alarm in half of the members as well, with the step saved.
        dump: write the batch of every step into `dump/` of the run folder: neutral (Parquet), or prime-rl.
        keys: `members=8`, a key of `[sim]` if that is the backend, or `schedule={"steps": 50}`, keys of a section.

    Raises:
        ConfigError: a setting, the recipe, a sink or the folder is refused; nothing is written.
        SizeError: the responses to the measured prompts are too many to enumerate.
        DataError: a step failed; the folder stays resumable.
        Interrupted: a signal or an alarm asked the run to stop; the step is saved.
    """
    over = None if settings is None else os.fspath(settings)
    run = _composed(backend)(recipe, laid(overrides, keys, simulated=backend == "sim"), over)
    folder = Path(out or f"runs/{named(recipe)}")
    return _trained(run, folder, resume=resume, strict=strict, track=track, alarm=alarm, dump=dump)


def go_on(
    folder: Path,
    overrides: Sequence[tuple[str, Any]],
    *,
    backend: str,
    changeable: Sequence[str],
    track: Sequence[str],
    alarm: str | None,
    dump: str | None,
) -> TrainResult:
    """Go on with the run in a folder, by its own settings; those in `changeable` may have other values."""
    run = _composed(backend)(folder / "config.toml", overrides, None)
    return _trained(run, folder, resume=True, changeable=changeable, track=track, alarm=alarm, dump=dump)


def _trained(
    run: TrainingRun,
    folder: Path,
    *,
    resume: bool,
    strict: bool = False,
    changeable: Sequence[str] = (),
    track: Sequence[str],
    alarm: str | None,
    dump: str | None,
) -> TrainResult:
    """A run from its resolved settings to its end; arguments as of `train`."""
    started = time.perf_counter()
    sinks, table = openers(track), _table(alarm)
    _check_dump(dump)
    from firstorder.core.training.inert import check_strict, notes

    inert = run.inert()
    if strict:
        check_strict(inert)
    session = run.prepare(folder, resume=resume, changeable=changeable)
    if session.ranks.is_rank0():
        for line in inert:
            log.info("inert: %s", line)
        for line in notes(run.recipe):
            log.info("note: %s", line)
        if session.first >= session.steps:
            log.info("%s has all its %d steps; --set schedule.steps=N makes it longer", folder, session.steps)
    _run(session, sinks, _watching(session, table, stop=alarm == STOP), _dumping(session, dump))
    return _result(folder, run, inert, time.perf_counter() - started)


def _composed(backend: str) -> Callable[[Source, Overrides, str | None], TrainingRun]:
    """What resolves the settings of a backend."""
    from firstorder.core.errors import ConfigError

    if backend not in BACKENDS:
        raise ConfigError(f"--backend must be {' or '.join(BACKENDS)}, got {backend!r}")
    return BACKENDS[backend]


def _table(alarm: str | None) -> Alarms | None:
    """The alarms to watch, None for none."""
    from firstorder.core.errors import ConfigError

    if alarm is None:
        return None
    if alarm not in ALARMS:
        raise ConfigError(f"--alarm must be {' or '.join(ALARMS)}, got {alarm!r}")
    from firstorder.core.runs.alarm_table import shipped

    table = shipped()
    if not table.alarms:
        raise ConfigError(
            f"--alarm {alarm} has nothing to watch: no way to read a log passed the rule of `firstorder study "
            "warnings`; leave it out"
        )
    return table


def _watching(session: Session, table: Alarms | None, *, stop: bool) -> Callable[[StepLog], bool]:
    """What watches each step on rank 0, and says whether an alarm stops the run."""
    from firstorder.core.runs.alarm_log import AlarmLog
    from firstorder.core.runs.logs import lines
    from firstorder.core.training.session import unwatched

    if table is None or not session.ranks.is_rank0():
        return unwatched
    watched = AlarmLog(session.folder, table, session.arms[0].recipe.schedule.minibatches, log.warning)

    def alarmed(step: StepLog) -> bool:
        metrics, receipts = lines(step)
        return watched.take(metrics | receipts) and stop

    return alarmed


def _check_dump(name: str | None) -> None:
    """Refuse a form that is not known, or whose library is missing."""
    if name is None:
        return
    from firstorder.core.errors import ConfigError
    from firstorder.core.formats.dumping import WRITERS

    if name not in WRITERS:
        raise ConfigError(f"--dump-format must be {' or '.join(WRITERS)}, got {name!r}")
    WRITERS[name].check()


def _dumping(session: Session, name: str | None) -> Callable[[int, Scored], None]:
    """What keeps the batches on rank 0."""
    from firstorder.core.training.loop import undumped

    if name is None or not session.ranks.is_rank0():
        return undumped
    from firstorder.core.formats.dumping import WRITERS, Dumper
    from firstorder.core.formats.neutral import Run

    recipe, arms = session.arms[0].recipe, session.arms
    modes = {arm.recipe.router_replay.mode for arm in arms}
    run = Run(
        experts=session.backend.experts,
        replay=modes.pop() if len(modes) == 1 else None,
        minibatches=recipe.schedule.minibatches,
    )
    return Dumper(folder=session.folder.path / "dump", writer=WRITERS[name], run=run).take


def _run(
    session: Session,
    sinks: Mapping[str, Opener],
    alarmed: Callable[[StepLog], bool],
    on_batch: Callable[[int, Scored], None],
) -> None:
    """Run a session to its end, shown in the sinks by rank 0; an interruption carries a note that says how to go on."""
    from firstorder.core.progress import tell
    from firstorder.core.runs.logs import lines
    from firstorder.core.runs.track import Tracker
    from firstorder.core.training.interrupt import Interrupted, deferred
    from firstorder.core.training.loop import logged_quantities

    rank0, folder = session.ranks.is_rank0(), session.folder.path
    tracker = Tracker(session.folder, sinks if rank0 else {}, logged_quantities(session.backend), log.warning)
    for name, sink in tracker.sinks.items():
        log.info("%s: %s", name, sink.place)

    def show(step: StepLog) -> None:
        metrics, receipts = lines(step)
        tracker.log(metrics | receipts)
        note = "  ".join(f"{name} {float(step.metrics[name].mean()):.4g}" for name in NOTED)
        tell("train", step.step + 1, session.steps, note)

    tell("train", session.first, session.steps)
    try:
        with closing(tracker), deferred(_heard if rank0 else lambda name: None) as asked:
            session.run(show, asked, alarmed, on_batch)
    except Interrupted as stopped:
        session.ranks.all_reduce_max(0)  # ranks leave together: torchrun kills those that are left when one has failed
        if rank0:
            where = f"{stopped.name} after step {stopped.step - 1}, saved"
            stopped.add_note(f"{folder}: {where}; go on with `firstorder resume {folder}`")
        raise
    except KeyboardInterrupt as interrupted:
        interrupted.add_note(f"{folder}: go on with `firstorder resume {folder}`")
        raise


def _heard(name: str) -> None:
    again = "; Ctrl-C again stops at once" if name == "SIGINT" else ""
    os.write(2, f"\nfirstorder: {name}: the step is finished and saved first{again}\n".encode())


def _result(folder: Path, run: TrainingRun, inert: list[str], seconds: float) -> TrainResult:
    from firstorder import __version__
    from firstorder.core.runs.logs import history

    steps, settings = list(history(folder)), run.settings()
    end = ended(folder, steps, settings)
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "seconds": seconds,
        "folder": str(folder),
        "settings": settings,
        "inert": inert,
        **end.document(),
        "steps": steps,
    }
    return TrainResult(document=document, folder=folder, recipe=run.recipe, inert=inert, steps=steps, ended=end)


def _mean(value: Any) -> float:
    """Over members; NaN where one has no value."""
    members = value if isinstance(value, list) else [value]
    return math.nan if None in members else fmean(members)
