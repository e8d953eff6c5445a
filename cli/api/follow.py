"""A dump that grows, read as its files come: a line a step, faults when they appear, and alarms as a training run has
them."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .audit import AuditOptions, border, opened

if TYPE_CHECKING:
    from firstorder.core.audit.finding import Known
    from firstorder.core.formats.registry import Dump
    from firstorder.core.runs.logs import Line

PAUSE = 2.0  # seconds between two looks; a file that has not changed from one to the next is whole
SHOWN = ("reward", "kl", "k3_kl", "route/flip_rate", "update/entropy")
NORMAL, FAULT, UNREADABLE = 0, 1, 2

State = tuple[int, int]


def follow(
    paths: Sequence[str | os.PathLike[str]],
    options: AuditOptions,
    say: Callable[[str], None],
    *,
    pause: float = PAUSE,
    over: Callable[[], bool] = lambda: False,
) -> int:
    """Watch files and folders until Ctrl-C, and say what each new step shows.

    Args:
        paths: folders that grow; there may be nothing in them yet.
        options: as of an audit.
        say: called with a line.
        pause: seconds between two looks.
        over: asked after each look whether to end.

    Returns:
        What the command exits with: 0 if nothing was found, 1 if a fault was named, 2 if a file could not be read.

    Raises:
        ConfigError: an option is refused.
    """
    from firstorder.core.errors import ConfigError, DataError

    if not paths:
        raise ConfigError("audit --follow takes the folder that grows, got none")
    options.check()
    watch, code = _Watch(options, say), NORMAL
    try:
        while True:
            try:
                code = max(code, watch.look(paths))
            except DataError as error:
                say(f"unreadable: {error}")
                code = UNREADABLE
            if over():
                return code
            time.sleep(pause)
    except KeyboardInterrupt:
        return code


class _Watch:
    """What was read, what was said, and the files as they were at the last look."""

    def __init__(self, options: AuditOptions, say: Callable[[str], None]) -> None:
        self.options, self.say = options, say
        self.read: set[Path] = set()
        self.before: dict[Path, State] = {}
        self.named: set[str] = set()
        self.alarms: Any = None

    def look(self, paths: Sequence[str | os.PathLike[str]]) -> int:
        """Read the files that have come and are whole."""
        dump = self._dump(paths)
        if dump is None:
            return NORMAL
        now = {path: _state(path) for path in dump.files if path not in self.read}
        whole = tuple(path for path, state in now.items() if state is not None and self.before.get(path) == state)
        self.before = {path: state for path, state in now.items() if state is not None}
        if not whole:
            return NORMAL
        self.read |= set(whole)
        return self._audit(dump, whole)

    def _dump(self, paths: Sequence[str | os.PathLike[str]]) -> Dump | None:
        """The dump so far, None while there is nothing of it."""
        from firstorder.core.formats.registry import NoDumpError

        try:
            return opened([path for path in paths if Path(path).exists()], self.options)
        except NoDumpError:
            return None

    def _audit(self, dump: Dump, files: tuple[Path, ...]) -> int:
        from dataclasses import replace

        from firstorder.core.audit.auditor import detectors, passing

        known = self.options.known(replace(dump, files=files))
        passed = passing(replace(dump, files=files).samples(), known, detectors(border()), lambda chunk: None)
        for line in passed.tally.lines():
            self.say(described(line))
            self._alarm(line, known)
        for finding in passed.findings:
            if finding.fault not in self.named:
                self.named.add(finding.fault)
                where = f" ({finding.where})" if finding.where else ""
                self.say(f"fault: {finding.fault}: {finding.evidence}{where}")
        return FAULT if passed.findings else NORMAL

    def _alarm(self, line: Line, known: Known) -> None:
        """Alarms that start or are over, as `train --alarm` says them."""
        from firstorder.core.runs.alarm import Monitor
        from firstorder.core.runs.alarm_log import sentence
        from firstorder.core.runs.alarm_table import shipped

        if self.alarms is None:
            self.alarms = Monitor(shipped(), known.minibatches or 1)
        for change in self.alarms.take(line):
            self.say(sentence(change, 1) if change.started else f"alarm over: {change.alarm.name}, step {change.step}")


def described(line: Line) -> str:
    """A step in a line."""
    values = {name: line.get(name) for name in SHOWN}
    shown = [f"{name} {value:.4g}" for name, value in values.items() if value is not None and math.isfinite(value)]
    return f"step {line['step']}: {', '.join(shown) or 'no log-probs of both engines'}"


def _state(path: Path) -> State | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
