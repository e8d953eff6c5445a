"""A verifier in a process of its own, since what a model wrote can keep it busy for ever or fill its memory.

The verifiers of mathematics parse and simplify what they are given, and `9^{9^{9^9}}` is soon written. An alarm ends
what Python can interrupt; what it cannot is ended with the process, and the next answer gets a new one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from firstorder.core.errors import DataError

START = 600.0  # seconds that a loaded machine may take to import a verifier
GRACE = 2.0  # seconds from the alarm to the end of the process


class _Late(BaseException):
    """The alarm; not an Exception, which verifiers catch."""


class Worker:
    """Calls a function in another process, one call at a time.

    Args:
        function: of a module, taking and returning what can be pickled.
        prepare: of a module; called once in every process, e.g. to import what takes long.
        seconds: of a call.
        memory_mib: that a call may take beyond what the process has when it is prepared.
    """

    def __init__(
        self, function: Callable[..., float], prepare: Callable[[], None], seconds: float, memory_mib: int
    ) -> None:
        self._task = (function, prepare, seconds, memory_mib)
        self._process: Any = None
        self._pipe: Connection | None = None

    def __call__(self, arguments: Iterable[tuple[Any, ...]]) -> list[float | None]:
        """What the function returns for each tuple of arguments, None where it failed or took too much.

        Raises:
            DataError: raised by the function, or the process does not start.
        """
        return [self._one(each) for each in arguments]

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None

    def _one(self, arguments: tuple[Any, ...]) -> float | None:
        pipe = self._pipe or self._start()
        pipe.send(arguments)
        try:
            if not pipe.poll(self._task[2] + GRACE):
                raise EOFError
            answer = pipe.recv()
        except (EOFError, OSError):
            self.close()
            return None
        if isinstance(answer, DataError):
            raise answer
        value: float | None = answer
        return value

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=_serve, args=(end, *self._task), daemon=True)
        self._process.start()
        end.close()
        try:
            if self._pipe.poll(START) and self._pipe.recv() == "ready":
                return self._pipe
        except (EOFError, OSError):
            pass
        self.close()
        raise DataError("the verifier's process does not start; see its message above")


def _serve(
    pipe: Connection, function: Callable[..., float], prepare: Callable[[], None], seconds: float, memory_mib: int
) -> None:
    """Answer calls until the other side is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to a whole group; the process that asks is the one to stop
        signal.signal(number, signal.SIG_IGN)
    prepare()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * os.sysconf("SC_PAGE_SIZE") + (memory_mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (bound, resource.getrlimit(resource.RLIMIT_AS)[1]))
    signal.signal(signal.SIGALRM, _late)
    pipe.send("ready")
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(_called(function, pipe.recv(), seconds))


def _called(function: Callable[..., float], arguments: tuple[Any, ...], seconds: float) -> float | DataError | None:
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        return float(function(*arguments))
    except DataError as error:
        return error
    except (Exception, _Late):
        return None  # what it was given is no answer that it can read
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def _late(number: int, frame: FrameType | None) -> None:
    raise _Late
