"""A training session: recipes that train on a backend into a run folder, prepared, run and resumed alike everywhere.

A backend prepares one inside `opened`, which reserves the run folder and finds the checkpoint to go on from:

    with opened(out, config, resume=resume) as (folder, checkpoint):
        backend = start the engines, and load checkpoint.state if there is one
    Session(arms, backend, folder, ...).run()
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from firstorder.core.errors import NotFiniteError
from firstorder.core.finite import check_finite
from firstorder.core.method.recipe import Recipe
from firstorder.core.runs.checkpoint import Checkpoint
from firstorder.core.runs.folder import Resolved, RunFolder
from firstorder.core.runs.logs import StepLog

from .arms import Arm
from .backend import Backend, Scored
from .interrupt import ALARM, Asked, Interrupted, never
from .loop import train, undumped

DIVERGED = "the policy diverges or is saturated; lower optimizer.lr, or bound the ratio with correction or clip"
Value = TypeVar("Value")


class Ranks(Protocol):
    """The processes that train together, of which rank 0 writes; a module of these functions is one."""

    def is_rank0(self) -> bool:
        """Whether this process writes."""

    def broadcast_from_rank0(self, make: Callable[[], Value], /) -> Value:
        """What `make` returns or raises on rank 0, on every rank."""

    def all_reduce_max(self, number: int, /) -> int:
        """The largest of the ranks' numbers, on every rank."""


class SingleProcess:
    """The `Ranks` of a backend that knows no others."""

    def is_rank0(self) -> bool:
        """It writes."""
        return True

    def broadcast_from_rank0(self, make: Callable[[], Value], /) -> Value:
        """What `make` returns."""
        return make()

    def all_reduce_max(self, number: int, /) -> int:
        """The number."""
        return number


ALONE: Ranks = SingleProcess()


def unwatched(log: StepLog) -> bool:
    """No alarm stops the run."""
    return False


def no_files(step: int) -> Mapping[str, str]:
    """The checksums of a backend whose checkpoints are all in `state`."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Session:
    """A run that is ready to go.

    Args:
        arms: the recipes, which share a schedule.
        backend: the engines, at the step where the run goes on.
        folder: held by this process until the run ends.
        first: the step where it goes on.
        checkpoint_every: steps between checkpoints.
        ranks: the processes that take part.
        around: entered around the steps, for what a backend does when they end or stop.
        checksums: the SHA-256 of the files that `backend.state` has written at a step, by path in `checkpoints/`.
    """

    arms: tuple[Arm, ...]
    backend: Backend
    folder: RunFolder
    first: int
    checkpoint_every: int
    ranks: Ranks = ALONE
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    checksums: Callable[[int], Mapping[str, str]] = no_files

    @property
    def steps(self) -> int:
        """Global steps of the schedule."""
        return self.arms[0].recipe.schedule.steps

    def run(
        self,
        on_step: Callable[[StepLog], None] = lambda log: None,
        asked: Asked = never,
        alarmed: Callable[[StepLog], bool] = unwatched,
        on_batch: Callable[[int, Scored], None] = undumped,
    ) -> None:
        """Train and record.

        Args:
            on_step: called after each recorded step.
            asked: whether a signal asks the run to stop.
            alarmed: called with each recorded step, before it is saved: whether an alarm stops the run.
            on_batch: called with the batch of each step as it was scored, before the updates.

        Raises:
            NotFiniteError: a gradient, weights or a metric are not numbers; the step and the newest checkpoint are
                named.
            DataError: a step failed; the folder stays resumable.
            Interrupted: a rank was asked to stop by a signal or an alarm; the step is saved.
        """
        after = self.first

        def record(log: StepLog) -> None:
            nonlocal after
            check_finite(log.metrics | log.receipts, DIVERGED)
            self.ranks.broadcast_from_rank0(lambda: self.folder.append(log))
            after, alarm = log.step + 1, ALARM if alarmed(log) else 0
            reason = self.ranks.all_reduce_max(max(asked(), alarm))  # one rank's is every rank's
            if reason or after % self.checkpoint_every == 0 or after == self.steps:
                self._save(after)
            on_step(log)
            if reason and after < self.steps:
                raise Interrupted(reason, after)

        try:
            with self.around():
                train(self.arms, self.backend, self.first, record, on_batch)
        except NotFiniteError as error:
            raise self.folder.stopped(error, after) from None
        finally:
            self.folder.close()

    def _save(self, step: int) -> None:
        state = self.backend.state()  # on every rank, of which each may write files of its own
        checksums = self.checksums(step)
        self.ranks.broadcast_from_rank0(lambda: self.folder.save(step, state, checksums))


@contextmanager
def opened(
    out: Path,
    config: dict[str, Any],
    *,
    resume: bool,
    changeable: Collection[str] = (),
    resolved: Resolved = dict,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[RunFolder, Checkpoint | None]]:
    """The run folder and its newest checkpoint, while the engines start; a start that fails leaves no new folder.

    Args:
        out: the folder.
        config: the resolved configuration, nested tables.
        resume: go on in a folder of the same configuration; else it must be new or empty.
        changeable: dotted keys that may have other values on resuming.
        resolved: what a stored configuration says today, as of `core.runs.folder.reserve`.
        ranks: the processes that take part.

    Raises:
        ConfigError: the folder cannot be used, with the remedy.
        DataError: it has checkpoints, and none is whole.
    """
    folder = ranks.broadcast_from_rank0(
        lambda: RunFolder(out, config, resume=resume, changeable=changeable, resolved=resolved)
    )
    try:
        yield folder, ranks.broadcast_from_rank0(folder.latest)
    except BaseException:
        if ranks.is_rank0() and not resume:
            folder.discard()
        folder.close()
        raise


class TrainingRun(Protocol):
    """A recipe and where it trains, every setting resolved."""

    @property
    def recipe(self) -> Recipe:
        """Method, schedule and optimiser."""

    @property
    def ranks(self) -> Ranks:
        """The processes that will take part."""

    def settings(self) -> dict[str, Any]:
        """The resolved configuration, nested tables."""

    def check(self) -> None:
        """Refuse what cannot be trained, before anything is written."""

    def inert(self) -> list[str]:
        """The parts of the recipe that cannot act in its schedule, one sentence each."""

    def prepare(self, out: Path, *, resume: bool = False, changeable: Collection[str] = ()) -> Session:
        """Check everything, open the run folder `out`, start the engines and restore the newest checkpoint; on resuming
        the keys `changeable` may have other values."""
