"""What a command shows on stderr while it works: bars at a terminal, elsewhere a line now and then."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from firstorder.core.progress import Watcher, watched

PATIENCE = 2.0  # seconds before the first line; the next ones come after twice as long each
LONGEST = 60.0  # seconds between two lines


@contextmanager
def shown(what: str, *, quiet: bool = False) -> Iterator[None]:
    """Show that the block is at work, for how long, what it tells of `core.progress`, in this process's name, and what
    the package logs.

    Args:
        what: the work, in a word.
        quiet: show nothing, as on all ranks but the first.
    """
    if quiet:
        yield
    else:
        with _logged(), _bars(what) if sys.stderr.isatty() else _lines(what):
            yield


def progress(what: str = "firstorder") -> AbstractContextManager[None]:
    """Show how far the work in the block is, as the commands do; without it nothing is shown.

    Example:
        with firstorder.progress(): firstorder.measure("minirl-r3")
    """
    return shown(what)


@contextmanager
def _logged() -> Iterator[None]:
    """What the package logs is a line each."""
    log, handler = logging.getLogger("firstorder"), _Stderr()
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(before)
        log.removeHandler(handler)


class _Stderr(logging.Handler):
    """To standard error as it is at that moment: above the bars while there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr, flush=True)


@contextmanager
def _bars(what: str) -> Iterator[None]:
    """A bar a piece of work, under one for the whole; they go when it ends."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks = {what: progress.add_task(what, total=None, note="")}

        def watch(name: str, done: int, total: int, note: str) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, note="")
            progress.update(tasks[name], completed=done, total=total, note=note)
            if done >= total and name != what:
                progress.remove_task(tasks.pop(name))

        with watched(watch):
            yield


@contextmanager
def _lines(what: str) -> Iterator[None]:
    """A line once the work takes long, then others at growing intervals, by a thread of its own."""
    at: dict[str, str] = {}
    over, started = threading.Event(), time.monotonic()

    def say() -> None:
        pause = PATIENCE
        while not over.wait(pause):
            spent = time.strftime("%H:%M:%S", time.gmtime(time.monotonic() - started))
            print(f"firstorder: {what}: {'; '.join([spent, *at.copy().values()])}", file=sys.stderr, flush=True)
            pause = min(2 * pause, LONGEST)

    speaker = threading.Thread(target=say, daemon=True)
    speaker.start()
    try:
        with watched(_noted(at)):
            yield
    finally:
        over.set()
        speaker.join()


def _noted(at: dict[str, str]) -> Watcher:
    """Keeps the latest word on each piece of work that is not done."""

    def watch(name: str, done: int, total: int, note: str) -> None:
        at[name] = f"{name} {done:,} of {total:,}" + (f", {note}" if note else "")
        if done >= total:
            at.pop(name)

    return watch
