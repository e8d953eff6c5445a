"""The two logs of a run, one JSON object a step, and what is wrong with one that was damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from firstorder.core.errors import DataError

from .files import write_whole

LOGS = ("metrics", "receipts")
TIMINGS = "timings.jsonl"  # beside them, since a run made again has the same metrics and other seconds

Line = dict[str, Any]
"""One step of a log: `step`, and a number for each name, a list of them in an ensemble."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a global step took.

    Args:
        seconds: from the start of its rollout to the end of its evaluation, of all members.
        tokens: response tokens of its batch, of all members.
    """

    seconds: float
    tokens: int

    def line(self) -> dict[str, float]:
        """As it is written."""
        return {"seconds": self.seconds, "tokens": self.tokens, "tokens_per_second": self.tokens / self.seconds}


@dataclass(frozen=True, kw_only=True)
class StepLog:
    """What one global step is remembered by: finalised metrics and receipts, each a tensor of shape `[]` or `[M]`, and
    what it took, None where nobody looked."""

    step: int
    metrics: dict[str, Tensor]
    receipts: dict[str, Tensor]
    timing: Timing | None = None


@dataclass(frozen=True, kw_only=True)
class Log:
    """What a log holds.

    Args:
        path: the file.
        lines: the steps in order.
        texts: their lines, byte for byte.
        faults: what is wrong, a phrase each; a last line that is only half written is what a kill leaves and no fault.
    """

    path: Path
    lines: list[Line]
    texts: list[bytes]
    faults: list[str]


def read(path: Path, steps: int | None = None) -> Log:
    """A log, with all that can be read of it.

    Args:
        path: the file; one that is not there holds no steps.
        steps: how many steps it must hold at least, where that is known.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; give another run") from None
    entries: dict[int, tuple[Line, bytes]] = {}
    faults: list[str] = []
    last, members = -1, dict[str, int]()
    *texts, half = content.split(b"\n")
    for number, text in enumerate(texts, start=1):
        entry = _entry(text)
        if entry is None:
            faults.append(f"line {number} is damaged")
        elif entry["step"] <= last:
            faults.append(f"line {number} goes back to step {entry['step']}")
        elif other := [name for name, size in _members(entry).items() if members.setdefault(name, size) != size]:
            faults.append(f"line {number} changes the members of {other[0]}")
        else:
            last = entry["step"]
            entries[last] = entry, text
    if half and not entries and not faults:
        faults.append("it holds no whole line")
    faults += _missing(sorted(entries), steps)
    return Log(
        path=path,
        lines=[line for line, _ in entries.values()],
        texts=[text for _, text in entries.values()],
        faults=faults,
    )


def history(folder: Path) -> Iterator[Line]:
    """The steps of a run folder in order, both logs together."""
    metrics, receipts = (read(folder / f"{name}.jsonl") for name in LOGS)
    by_step = {line["step"]: line for line in receipts.lines}
    for line in metrics.lines:
        yield line | by_step.get(line["step"], {})


def whole(path: Path, steps: int, remedy: str) -> list[Line]:
    """The steps of a log that nothing is wrong with.

    Args:
        path: the file.
        steps: how many it must hold at least.
        remedy: what the error advises.

    Raises:
        DataError: a line is damaged, or a step is missing.
    """
    log = read(path, steps)
    if log.faults:
        raise DataError(f"{path}: {described(log.faults)}; {remedy}")
    return log.lines


def cut(log: Log, step: int) -> None:
    """Drop the lines of steps that will be run again, and those that are not whole."""
    if log.path.is_file():
        texts = (text for text, line in zip(log.texts, log.lines, strict=True) if line["step"] < step)
        write_whole(log.path, b"".join(text + b"\n" for text in texts))


def described(faults: list[str]) -> str:
    """The first faults, and how many more there are."""
    more = len(faults) - 3
    return "; ".join(faults[:3]) + (f"; and {more} more" if more > 0 else "")


def lines(log: StepLog) -> tuple[Line, Line]:
    """A step as it stands in the two logs."""
    metrics, receipts = (
        {"step": log.step} | {key: _plain(value) for key, value in values.items()}
        for values in (log.metrics, log.receipts)
    )
    return metrics, receipts


def _entry(text: bytes) -> Line | None:
    """A line that is a step with numbers, null where one was not finite; else None."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not _is_count(entry.get("step")):
        return None
    numbers = (each for value in entry.values() for each in (value if isinstance(value, list) else [value]))
    return entry if all(_is_number(each) for each in numbers) else None


def _members(entry: Line) -> dict[str, int]:
    """How many members each quantity of a line has; 0 for a number that stands alone."""
    return {name: len(value) if isinstance(value, list) else 0 for name, value in entry.items()}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _missing(logged: list[int], steps: int | None) -> list[str]:
    """The ranges of steps that a log lacks, below its last step and below `steps`."""
    ends = [-1, *logged, *([steps] if steps is not None and steps > (logged or [-1])[-1] else [])]
    gaps = [(before + 1, after - 1) for before, after in pairwise(ends) if after - before > 1]
    return [f"step {low} is missing" if low == high else f"steps {low} to {high} are missing" for low, high in gaps]


def _plain(value: Tensor) -> float | list[float]:
    numbers = value.double().tolist()
    return numbers[0] if isinstance(numbers, list) and len(numbers) == 1 else numbers
