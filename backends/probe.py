"""Engine pairs measured one after another, in a process of their own.

vLLM restarts within a process, but reads some variables when it is imported, and a GPU's memory is given back for
certain only when the process ends. So a process measures points until one needs other variables; on a GPU, one point.
What the engines write to the terminal goes to a file, whose last line says why a process died.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any

from firstorder.core.errors import DataError, FirstOrderError, WorkerError

from .parity import Point, measure
from .vllm.arguments import ON_CPU, environment

Outcome = dict[str, Any] | FirstOrderError
PATIENCE = 20.0  # seconds for a process to release what it holds


def measure_all(points: Sequence[Point]) -> Generator[Outcome, None, None]:
    """What was measured at each point, or why it could not be, in order.

    Whoever stops asking stops the engines.
    """
    process: Process | None = None
    try:
        for point in points:
            if process is None or not process.fits(point):
                if process is not None:
                    process.stop()
                process = Process(point)
            outcome = process.ask(point)
            if isinstance(outcome, WorkerError):
                process.stop()
                process = None
            yield outcome
    finally:
        if process is not None:
            process.stop()


class Process:
    """A process that measures points which agree on the variables of vLLM.

    Args:
        point: the first of them.
    """

    def __init__(self, point: Point) -> None:
        self._variables, self._asked, self._at_work = environment(point.vllm), 0, False
        self._written = tempfile.NamedTemporaryFile()  # noqa: SIM115  # lives as long as the process
        spawn = multiprocessing.get_context("spawn")
        self._here, there = spawn.Pipe()
        self._process = spawn.Process(target=_work, args=(there, self._written.name), daemon=False)
        self._process.start()
        there.close()

    def fits(self, point: Point) -> bool:
        """Whether it can measure a further point."""
        return self._asked == 0 or (ON_CPU and self._variables == environment(point.vllm))

    def ask(self, point: Point) -> Outcome:
        """What it measures, or why it cannot."""
        self._asked, self._at_work = self._asked + 1, True
        try:
            self._here.send(point)
            outcome: Outcome = self._here.recv()
        except (EOFError, OSError):
            self._process.join()
            lines = self._written.read().decode(errors="replace").strip().splitlines()
            last = lines[-1] if lines else "nothing"
            return WorkerError(f"the engines' process ended with code {self._process.exitcode}; its last word: {last}")
        self._at_work = False
        return outcome

    def stop(self) -> None:
        """End it: by itself when it is idle, at once when it is at work."""
        self._here.close()
        if not self._at_work:
            self._process.join(PATIENCE)
        self._process.kill()
        self._process.join()
        self._written.close()


def _work(there: Any, written: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    with open(written, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with suppress(EOFError):
        while True:
            point = there.recv()
            try:
                outcome: Outcome = measure(point)
            except FirstOrderError as error:
                outcome = error
            except Exception as error:  # of an engine; its kinds are many
                text = str(error).strip().splitlines()
                outcome = DataError(f"the engines fail: {text[-1] if text else type(error).__name__}")
            there.send(outcome)
