"""A run folder: `config.toml`, `metrics.jsonl` and `receipts.jsonl` (one object a step), `quantities.json` (what their
names mean), `timings.jsonl` (what each step took), `checkpoints/`, and `alarms.jsonl` where alarms are watched.

A checkpoint is written whole or not at all and says which step comes next. Whatever the logs hold beyond it is cut
off on resume, so a run that was killed at any moment goes on bit for bit, in all but its timings.
"""

from __future__ import annotations

import logging
import shutil
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from firstorder.core.errors import ConfigError, DiskError, NotFiniteError
from firstorder.core.quantities import Quantity
from firstorder.core.settings.toml import dump, flat, parse

from . import checkpoint, events
from .checkpoint import Checkpoint
from .files import to_json, write_whole
from .lock import NAME as LOCK
from .lock import Lock
from .logs import LOGS, TIMINGS, Line, StepLog, cut, described, history, lines, read

log = logging.getLogger("firstorder")
NAMED = 5  # settings that an error names
Resolved = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes of a stored configuration one with the keys that came later, at their defaults."""


class RunFolder:
    """The files of one run.

    Args:
        path: the folder.
        config: the resolved configuration, nested tables.
        resume: go on in a folder that holds the same configuration; else the folder must be new or empty.
        changeable: dotted keys that may have other values on resuming; they are written down anew.
        resolved: what a stored configuration says today, as of `reserve`.

    Raises:
        ConfigError: the folder cannot be used, with the remedy.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        *,
        resume: bool,
        changeable: Collection[str] = (),
        resolved: Resolved = dict,
    ) -> None:
        self.path, self.config = path, config
        self._lock = reserve(path / "config.toml", config, resume=resume, changeable=changeable, resolved=resolved)
        try:
            (path / "checkpoints").mkdir(exist_ok=True)
        except OSError as error:
            self._lock.release()
            raise _unusable(path, error) from None

    def describe(self, quantities: Mapping[str, Quantity]) -> None:
        """Write down what the logged names mean.

        Raises:
            ConfigError: the file cannot be written.
        """
        write_whole(self.path / "quantities.json", to_json({name: asdict(q) for name, q in quantities.items()}))

    def append(self, log: StepLog) -> None:
        """Add a step to both logs, and what it took to the timings, flushed to disk.

        Raises:
            DiskError: the disk is full or gone; the last checkpoint is untouched.
        """
        for name, line in zip(LOGS, lines(log), strict=True):
            self.add(f"{name}.jsonl", line)
        if log.timing is not None:
            self.add(TIMINGS, {"step": log.step} | log.timing.line())

    def add(self, name: str, line: Mapping[str, Any]) -> None:
        """Add an object to a file of one a line; raises as `append`."""
        try:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(to_json(line, indent=None))
        except OSError as error:
            raise _stopped(self.path, error) from None

    def history(self) -> Iterator[Line]:
        """The logged steps in order, both logs together."""
        return history(self.path)

    def save(self, step: int, state: dict[str, Any], parts: Mapping[str, str] | None = None) -> None:
        """Write the checkpoint from which step `step` follows; keep the newest two.

        Args:
            step: the step that follows.
            state: what the backend needs to go on.
            parts: the SHA-256 of the files that it has written itself, by their paths in `checkpoints/`.

        Raises:
            DiskError: the disk is full or gone; earlier checkpoints are untouched.
        """
        try:
            checkpoint.write(self.path / "checkpoints", step, state, parts or {})
        except OSError as error:
            raise _stopped(self.path, error) from None

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, with both logs and the alarms cut back to it; None if there is none yet.

        What the logs lack is said in a warning.

        Raises:
            DataError: there are checkpoints, and none is whole; the logs are untouched.
        """
        newest = checkpoint.newest(self.path / "checkpoints")
        step = 0 if newest is None else newest.step
        if newest is None and (self.path / "metrics.jsonl").is_file():
            log.warning("%s holds no checkpoint yet; the run starts again at step 0", self.path)
        for name in LOGS:
            logged = read(self.path / f"{name}.jsonl", step)
            if logged.faults:
                log.warning(
                    "%s: %s; the run goes on from step %d without them", logged.path, described(logged.faults), step
                )
            cut(logged, step)
        cut(read(self.path / TIMINGS), step)
        events.cut(self.path, step)
        return newest

    def close(self) -> None:
        """Let other processes have the folder."""
        self._lock.release()

    def discard(self) -> None:
        """Remove a new folder, in which nothing has been recorded yet."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.close()

    def stopped(self, error: NotFiniteError, step: int) -> NotFiniteError:
        """An error of a step with where it happened and where the run can be taken up."""
        whole = checkpoint.paths(self.path / "checkpoints")
        where = f"the newest checkpoint before it is {whole[-1]}" if whole else "there is no checkpoint before it"
        return NotFiniteError(f"step {step}: {error}; {where}")


def reserve(
    file: Path,
    config: dict[str, Any],
    *,
    resume: bool,
    changeable: Collection[str] = (),
    resolved: Resolved = dict,
) -> Lock:
    """Make a folder that belongs to one configuration, or go back to it, and keep other processes out of it.

    Args:
        file: where in the folder the configuration is kept.
        config: nested tables.
        resume: the folder must hold this configuration; else it must be new or empty.
        changeable: dotted keys that may have other values on resuming; they are written down anew.
        resolved: what a stored configuration says today, its missing keys at their defaults; as it stands unless given.

    Returns:
        What holds the folder until it is released.

    Raises:
        ConfigError: the folder cannot be used, with the remedy; another process uses it.
    """
    path, text = file.parent, dump(config)
    if resume:
        _check_same(file, text, changeable, resolved)
    else:
        _check_new(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(path, error) from None
    lock = Lock(path)
    try:
        if not resume:
            _check_new(path)  # another process may have been first
        if not resume or changeable:
            write_whole(file, text)  # before anything else, so that a folder that is not empty can be resumed
    except BaseException:
        lock.release()
        raise
    return lock


def _check_new(path: Path) -> None:
    """Refuse a place where something is already."""
    try:
        taken = path.exists() and (not path.is_dir() or any(each.name != LOCK for each in path.iterdir()))
    except OSError as error:
        raise _unusable(path, error) from None
    if taken:
        raise ConfigError(f"{path} exists and is not an empty folder; give a new --out, or --resume to go on")


def _check_same(file: Path, text: str, changeable: Collection[str], resolved: Resolved) -> None:
    """Refuse to resume where another configuration ran, naming the keys that differ and must not."""
    path = file.parent
    if not file.is_file():
        raise ConfigError(f"{path} holds no run to resume, no {file.name}; drop --resume to start one")
    before, now = flat(_stored(file, resolved)), flat(tomllib.loads(text))
    keys = sorted((before.keys() | now.keys()) - set(changeable))
    apart = [f"{key} = {before.get(key)!r}, got {now.get(key)!r}" for key in keys if before.get(key) != now.get(key)]
    if apart:
        more = f", and {len(apart) - NAMED} more" if len(apart) > NAMED else ""
        raise ConfigError(
            f"{path} was run with {'; with '.join(apart[:NAMED])}{more}; "
            "resume with the same recipe and settings, or give a new --out"
        )


def _stored(file: Path, resolved: Resolved) -> dict[str, Any]:
    """What a folder was reserved for, with the keys of today where they are all known, else as it stands."""
    try:
        tables = parse(file)
    except ConfigError as error:
        raise ConfigError(f"{error}; mend it, or give a new --out") from None
    try:
        return tomllib.loads(dump(resolved(tables)))
    except ConfigError:
        return tables


def _unusable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot use {path}: {error.strerror}; give another --out")


def _stopped(path: Path, error: Exception) -> DiskError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return DiskError(f"cannot write to {path}: {reason}; free some space and go on with --resume")
