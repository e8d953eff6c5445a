"""The alarms of a run in its folder: `alarms.jsonl`, one object for each alarm that starts or is over.

What a run has logged says which alarms it had, so that the file is written anew from the logs whenever the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .alarm import Change, Monitor
from .alarm_table import Range, Table
from .events import NAME, Event
from .files import to_json, write_whole
from .folder import RunFolder
from .logs import Line

ENOUGH = 0.5  # of the members: alarms in so many stop the run


class AlarmLog:
    """Watches a run, writes its alarms down, and says them once each.

    Args:
        folder: the run folder, at the checkpoint from which the run goes on.
        table: what to watch.
        minibatches: updates a step, N of the recipe's schedule.
        say: what is called with one line when an alarm starts in its first member, or is over in its last one.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, folder: RunFolder, table: Table, minibatches: int, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._monitor = Monitor(table, minibatches)
        self._members: dict[str, set[int]] = {alarm.name: set() for alarm in table.alarms}
        self._fresh: dict[str, set[int]] = {alarm.name: set() for alarm in table.alarms}
        self._size, self._named, self._told = 1, set[str](), False
        before = [change for line in folder.history() for change in self._step(line)]
        for change in before:
            self._keep(change)
        self._fresh = {name: set() for name in self._fresh}  # an alarm that the run goes on with is known
        self._named |= set(self._monitor.unlogged())
        write_whole(folder.path / NAME, "".join(to_json(event(change).line(), indent=None) for change in before))

    def take(self, line: Line) -> bool:
        """Watch a step that has been logged.

        Returns:
            Whether an alarm that started since the run went on, any of them, is on in at least half of the members.

        Raises:
            DiskError: the file cannot be written; logs and checkpoints are untouched.
        """
        for change in self._step(line):
            self._folder.add(NAME, event(change).line())
            before = bool(self._members[change.alarm.name])
            self._keep(change)
            after = bool(self._members[change.alarm.name])
            if before != after:
                self._say(
                    sentence(change, self._size) if after else f"alarm over: {change.alarm.name}, step {change.step}"
                )
            if change.started and change.outside and not self._told:
                self._told = True
                self._say(warning(change))
        if missing := [name for name in self._monitor.unlogged() if name not in self._named]:
            self._named |= set(missing)
            self._say(f"alarms that read {', '.join(missing)} are off: this run does not log it")
        return len(set().union(*self._fresh.values())) >= ENOUGH * self._size

    def _step(self, line: Line) -> list[Change]:
        self._size = max([self._size, *(len(value) for value in line.values() if isinstance(value, list))])
        return self._monitor.take(line)

    def _keep(self, change: Change) -> None:
        for states in (self._members, self._fresh):
            state = states[change.alarm.name]
            states[change.alarm.name] = state | set(change.members) if change.started else state - set(change.members)


def happened(lines: Iterable[Line], table: Table, minibatches: int) -> list[Event]:
    """The alarms of a run that was not watched, from its lines; other arguments as of `AlarmLog`."""
    monitor = Monitor(table, minibatches)
    return [event(change) for line in lines for change in monitor.take(line)]


def event(change: Change) -> Event:
    """A change as it stands in the file."""
    return Event(
        step=change.step,
        alarm=change.alarm.name,
        quantity=change.alarm.quantity,
        event="start" if change.started else "end",
        members=change.members,
        reading=change.readings,
        threshold=change.limits,
        fitted=not change.outside,
    )


def sentence(change: Change, members: int) -> str:
    """An alarm that starts, for people: what was read, how often it was right, what it points to and what to change."""
    alarm, known = change.alarm, change.alarm.held_out
    among = f" in {len(change.members)} of {members} members" if members > 1 else ""
    sure = (
        f"on conditions it was not fitted on it came before {known.hits} of the collapses and in {known.false_alarms} "
        "of the runs without one"
        if not change.outside
        else "how sure is not known here"
    )
    return (
        f"alarm: {alarm.name}{among}, step {change.step}: {change.readings[0]:.3g}, "
        f"{'above' if alarm.side == 'high' else 'below'} {change.limits[0]:.3g}; {alarm.cause}; {alarm.remedy} ({sure})"
    )


def warning(change: Change) -> str:
    """What of the run the thresholds were not fitted for."""
    off = [f"{name} {value:.3g} is not within {_shown(held)}" for name, value, held in change.outside]
    return f"alarms: the thresholds were fitted on other runs: at the beginning {', '.join(off)}"


def _shown(held: Range) -> str:
    return f"{held.low:.3g} to {held.high:.3g}"
