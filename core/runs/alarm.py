"""Alarms of a run, from what it has logged: which warned, in which member, since which step, and when it was over.

A fold over the lines of a run: the same lines give the same alarms, live, on resuming or years later. An alarm starts
at the first step whose reading is beyond the threshold, and is over when a window of steps in a row is not.

Shapes: M members, W steps of a window.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .alarm_table import BEGINNING, LEAST, Alarm, Range, Reads, Table
from .logs import Line


@dataclass(frozen=True, kw_only=True)
class Change:
    """An alarm that starts, or is over, in some members at a step.

    Args:
        step: whose line was read.
        alarm: which.
        started: whether it starts; else it is over.
        members: their places.
        readings, limits: what was read and the threshold, one each.
        outside: what of the run the table was not fitted for: a name, its value in the member that is furthest off, and
            the range that was fitted.
    """

    step: int
    alarm: Alarm
    started: bool
    members: tuple[int, ...]
    readings: tuple[float, ...]
    limits: tuple[float, ...]
    outside: tuple[tuple[str, float, Range], ...]


@dataclass(frozen=True, kw_only=True)
class Fired:
    """One alarm of one member, from the step `since` to the step `until` at which it was over, None if it is not."""

    alarm: Alarm
    member: int
    since: int
    until: int | None


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What a run began with, `[M]` each: mean response length, entropy and k3 estimate of the KL."""

    length: Tensor
    entropy: Tensor
    kl: Tensor

    def outside(self, table: Table, minibatches: int) -> tuple[tuple[str, float, Range], ...]:
        """What the table was not fitted for, as in `Change`."""
        regime = table.regime
        known = {
            "response_length": (self.length, regime.response_length),
            "minibatches": (torch.tensor([float(minibatches)]), regime.minibatches),
            "update/entropy": (self.entropy, regime.entropy),
            "k3_kl": (self.kl, regime.k3_kl),
        }
        return tuple((name, off, held) for name, (x, held) in known.items() if (off := _furthest(x, held)) is not None)


class Monitor:
    """The fold: takes the lines of a run one after the other, both logs together.

    Args:
        table: what to watch.
        minibatches: updates a step, N of the recipe's schedule.
    """

    def __init__(self, table: Table, minibatches: int) -> None:
        self.table, self.minibatches = table, minibatches
        self._first: list[Line] = []
        self._last: deque[Line] = deque(maxlen=max((a.steps(minibatches) for a in table.alarms), default=1))
        self._taken = 0
        self._on: dict[str, Tensor] = {}
        self._quiet: dict[str, Tensor] = {}
        self._logged: set[str] = set()

    @property
    def beginning(self) -> Beginning | None:
        """What the run began with, None before it is known, or where it does not log it."""
        if len(self._first) < -(-BEGINNING // self.minibatches):
            return None
        length, entropy, kl = (
            _mean(column(self._first, name)) for name in ("response_length", "update/entropy", "k3_kl")
        )
        if length is None or entropy is None or kl is None:
            return None
        return Beginning(length=length, entropy=entropy, kl=kl)

    def take(self, line: Line) -> list[Change]:
        """What changes with the next step."""
        if len(self._first) < -(-BEGINNING // self.minibatches):
            self._first.append(line)
        self._last.append(line)
        self._logged |= line.keys()
        self._taken += 1
        begun = self.beginning
        if begun is None:
            return []
        outside = begun.outside(self.table, self.minibatches)
        changes = []
        for alarm in self.table.alarms:
            reading = self._reading(alarm)
            if reading is None:
                continue
            limit = alarm.limit(begun.length, self.minibatches, begun.entropy).expand_as(reading)
            for started, members in self._turned(alarm, reading, limit):
                changes.append(
                    Change(
                        step=int(line["step"]),
                        alarm=alarm,
                        started=started,
                        members=tuple(members),
                        readings=tuple(float(reading[m]) for m in members),
                        limits=tuple(float(limit[m]) for m in members),
                        outside=outside,
                    )
                )
        return changes

    def unlogged(self) -> list[str]:
        """Quantities that alarms wait for and no line had so far; none before a window has passed."""
        due = [alarm for alarm in self.table.alarms if self._taken >= alarm.steps(self.minibatches)]
        names = dict.fromkeys(name for alarm in due for name in (alarm.quantity, alarm.per) if name is not None)
        return [name for name in names if name not in self._logged]

    def on(self) -> Tensor | None:
        """Which members some alarm is on in, bool `[M]`; None before any was read."""
        states = list(self._on.values())
        return torch.stack(states).any(0) if states else None

    def _reading(self, alarm: Alarm) -> Tensor | None:
        steps = alarm.steps(self.minibatches)
        if self._taken < steps or (alarm.of == "change" and self._taken < steps + len(self._first)):
            return None
        window = quotient(list(self._last)[-steps:], alarm)
        if window is None:
            return None
        first = quotient(self._first, alarm)
        return read(
            window, torch.full_like(window[:, :1], torch.nan) if first is None else first, alarm, self.minibatches
        )

    def _turned(self, alarm: Alarm, reading: Tensor, limit: Tensor) -> list[tuple[bool, list[int]]]:
        """The members in which the alarm starts, and those in which it is over."""
        nothing = torch.zeros(len(reading), dtype=torch.bool)
        on, quiet = self._on.get(alarm.name, nothing), self._quiet.get(alarm.name, nothing.long())
        known, beyond = ~(reading.isnan() | limit.isnan()), alarm.beyond(reading, limit)
        quiet = torch.where(beyond, 0, quiet + known.long())
        starts, ends = beyond & ~on, on & (quiet >= alarm.steps(self.minibatches))
        self._on[alarm.name], self._quiet[alarm.name] = (on | starts) & ~ends, quiet
        turned = ((True, starts), (False, ends))
        return [(started, which.nonzero()[:, 0].tolist()) for started, which in turned if which.any()]


def fired(history: Iterable[Line], table: Table, minibatches: int) -> list[Fired]:
    """The alarms of a run so far, in the order in which they started.

    Args:
        history: the lines of its steps, both logs together.
        table: what to watch.
        minibatches: updates a step, N of the recipe's schedule.
    """
    monitor = Monitor(table, minibatches)
    return episodes(change for line in history for change in monitor.take(line))


def episodes(changes: Iterable[Change]) -> list[Fired]:
    """From starts and ends to alarms with both."""
    found: list[Fired] = []
    running: dict[tuple[str, int], int] = {}
    for change in changes:
        for member in change.members:
            key = change.alarm.name, member
            if change.started:
                running[key] = len(found)
                found.append(Fired(alarm=change.alarm, member=member, since=change.step, until=None))
            elif key in running:
                place = running.pop(key)
                found[place] = Fired(alarm=change.alarm, member=member, since=found[place].since, until=change.step)
    return found


def read(window: Tensor, first: Tensor, reads: Reads, minibatches: int) -> Tensor:
    """What is read of a quantity, `[...]`; NaN where nothing can be read.

    Args:
        window: `[..., W]`, the quantity over the steps of the window, NaN where it was not logged.
        first: `[..., F]`, over those of the beginning; what begins with 0 has no change and no slope.
        reads: says what of it.
        minibatches: updates a step.
    """
    level, start = window.nanmean(-1), first.nanmean(-1)
    start = torch.where(start == 0, torch.nan, start)
    if reads.of == "slope":
        return slope(window) / minibatches / start
    if reads.of == "size":
        return level.abs()
    return level / start if reads.of == "change" else level


def slope(values: Tensor) -> Tensor:
    """Of the least-squares line through the known of `[..., W]` values a step apart; NaN through fewer than three.

    Example:
        >>> slope(torch.tensor([1.0, torch.nan, 5.0, 7.0]))
        tensor(2.)
    """
    known = ~values.isnan()
    n = known.sum(-1, keepdim=True).to(values)
    x = torch.arange(values.shape[-1]).to(values)
    centred = torch.where(known, x - torch.where(known, x, 0.0).sum(-1, keepdim=True) / n, 0.0)
    rise = (centred * torch.where(known, values, 0.0)).sum(-1) / centred.square().sum(-1)
    return torch.where(n[..., 0] >= LEAST, rise, torch.nan)


def quotient(lines: Sequence[Line], reads: Reads) -> Tensor | None:
    """A quantity, over the other one if there is one, `[M, W]`; None where the lines have none."""
    above = column(lines, reads.quantity)
    if above is None or reads.per is None:
        return above
    below = column(lines, reads.per)
    return None if below is None else above / torch.where(below == 0, torch.nan, below)


def column(lines: Sequence[Line], name: str) -> Tensor | None:
    """A quantity of some lines, float64 `[M, W]`, NaN where a line has none; None where no line has it."""
    rows = [value if isinstance(value := line.get(name), list) else [value] for line in lines]
    members = max(map(len, rows), default=0)
    if all(each is None for row in rows for each in row):
        return None
    numbers = [[math.nan if each is None else each for each in row] for row in rows]
    full = [row if len(row) == members else [math.nan] * members for row in numbers]
    return torch.tensor(full, dtype=torch.float64).T


def _mean(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.nanmean(-1)


def _furthest(values: Tensor, held: Range) -> float | None:
    """The value that is furthest out of a range; None where none is out, but for rounding."""
    slack = 1e-9 * max(abs(held.low), abs(held.high))
    off = torch.maximum(held.low - values, values - held.high)
    worst = off.nan_to_num(-torch.inf).argmax()
    return float(values[worst]) if float(off[worst]) > slack else None
