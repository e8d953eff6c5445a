"""A run that is asked to stop, by Ctrl-C, SIGTERM or an alarm, finishes its step, saves it, and ends with a code that
says so.

A scheduler sends SIGTERM a while before it kills. Whoever sits at a terminal presses Ctrl-C, and again to stop at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

ALARM = 1  # in place of a signal's number, and below those: of both reasons to stop, a signal is the one that is said
ALARMED = 3  # exit code

Asked = Callable[[], int]
"""The number of the signal that asked the run to stop, 0 if none did."""


class Interrupted(KeyboardInterrupt):
    """A run stopped because it was asked to, with its last step saved; met wherever a Ctrl-C is.

    Args:
        number: of the signal, or `ALARM`.
        step: from which the run goes on.
    """

    def __init__(self, number: int, step: int) -> None:
        self.name = "an alarm" if number == ALARM else signal.Signals(number).name
        super().__init__(f"stopped by {self.name}; step {step} follows")
        self.step = step
        # as shells report a process that a signal ended: 130 or 143
        self.code = ALARMED if number == ALARM else 128 + number


def never() -> int:
    """Nobody asks: 0."""
    return 0


@contextmanager
def deferred(say: Callable[[str], None] = lambda name: None) -> Iterator[Asked]:
    """Hold SIGINT and SIGTERM back while the block runs, for the run to look at after each step.

    A second Ctrl-C stops at once. A signal that the process ignores, as behind `nohup`, stays ignored, and outside of
    the main thread nothing is held back, since only that one meets signals.

    Args:
        say: called with the name of the first signal, between two instructions of whatever runs: it must not print
            through a buffer.

    Yields:
        What tells the number of the signal, 0 before one arrives.
    """
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT in arrived:
            raise KeyboardInterrupt
        if not arrived:
            say(signal.Signals(number).name)
        arrived.append(number)

    main = threading.current_thread() is threading.main_thread()
    deferrable = [n for n in SIGNALS if main and signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in deferrable}
    try:
        yield lambda: arrived[0] if arrived else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
