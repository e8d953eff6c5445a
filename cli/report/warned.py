"""The alarms of runs, summed up over members and episodes, and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from firstorder.core.runs.events import Event

    from .runs import Run


@dataclass(frozen=True, kw_only=True)
class Warned:
    """An alarm of a run, over all its members and episodes.

    Args:
        alarm: its name.
        quantity: what it reads.
        start: the first step of a member.
        members: how many it was on in at some step.
        on: in how many it still is.
        fitted: whether the run is one that thresholds were fitted for.
    """

    alarm: str
    quantity: str
    start: int
    members: int
    on: int
    fitted: bool


def warned(run: Run) -> list[Warned]:
    """The alarms of a run, in the order in which they started."""
    return summed(run.alarms)


def summed(alarms: Sequence[Event]) -> list[Warned]:
    """Alarms in the order in which they started, each over all its members and episodes."""
    by_alarm: dict[str, list[Event]] = {}
    for event in alarms:
        by_alarm.setdefault(event.alarm, []).append(event)
    return [_summed(events) for events in by_alarm.values()]


def alarm_table(runs: Sequence[Run]) -> list[dict[str, str]]:
    """A row for each run and alarm, as text; none where no run had any."""
    return [
        {
            "run": run.label,
            "alarm": each.alarm,
            "quantity": each.quantity,
            "since step": str(each.start),
            "members": f"{each.members} of {run.members}",
            "still on in": str(each.on),
            "thresholds": "fitted for such runs" if each.fitted else "fitted for other runs",
        }
        for run in runs
        for each in warned(run)
    ]


def _summed(events: Sequence[Event]) -> Warned:
    ever, on = set[int](), set[int]()
    for event in events:
        members = set(event.members)
        ever, on = ever | members, on | members if event.event == "start" else on - members
    first = events[0]
    return Warned(
        alarm=first.alarm,
        quantity=first.quantity,
        start=first.step,
        members=len(ever),
        on=len(on),
        fitted=first.fitted,
    )
