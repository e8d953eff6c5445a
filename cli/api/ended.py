"""How a training run ended: what became of it, the seeds that collapsed, the alarms it crossed, what it took, and the
next command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstorder.cli.report.outcome import RunOutcome
    from firstorder.core.runs.events import Event
    from firstorder.core.runs.logs import Line

HELP = "docs/collapse.md"


@dataclass(frozen=True, kw_only=True)
class Crossed:
    """An alarm that started in some members.

    Args:
        alarm: its name in the table.
        step: of the first of them.
        members: their places.
    """

    alarm: str
    step: int
    members: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended.

    Args:
        folder: of the run.
        steps: global steps done.
        outcome: what became of it, None where nothing says J.
        seeds: those of the members that collapsed.
        members: how many there are.
        crossed: the alarms that started, watched or not, in the order of their steps.
        seconds, tokens: that all steps took, and the response tokens of all batches; None where they were not noted.
    """

    folder: Path
    steps: int
    outcome: RunOutcome | None
    seeds: tuple[int, ...]
    members: int
    crossed: tuple[Crossed, ...]
    seconds: float | None
    tokens: int | None

    def lines(self) -> Iterator[str]:
        """The verdict for people, a line each."""
        yield f"{self.folder}: {self.steps} steps{self._took()}"
        if self.outcome is not None:
            yield f"verdict: {self.outcome.headline}"
            yield f"J: {self.outcome.course}"
        if self.seeds:
            yield f"collapsed seeds: {', '.join(map(str, self.seeds))}"
        for each in self.crossed:
            among = f" in {len(each.members)} of {self.members} members" if self.members > 1 else ""
            yield f"alarm: {each.alarm}{among}, since step {each.step}"
        if self.outcome is not None and self.outcome.remedies:
            yield f"what to do: {self.outcome.advice}; {HELP} says why"
        yield f"next: firstorder report {self.folder} --out {self.folder}-report --open"

    def _took(self) -> str:
        if self.seconds is None or self.tokens is None:
            return ""
        return f" in {self.seconds:.3g} s, {self.tokens:,} tokens, {self.tokens / self.seconds:,.0f} tokens/s"

    def document(self) -> dict[str, Any]:
        """As it stands in the JSON of a run."""
        found = self.outcome
        return {
            "outcome": None
            if found is None
            else {
                "state": found.state,
                "members": dict(found.members),
                "quantity": found.quantity,
                "first": found.first,
                "last": found.last,
                "best": found.best,
                "steps_done": list(found.steps_done),
                "since": found.since,
                "remedies": [remedy for remedy, _ in found.remedies],
            },
            "collapsed_seeds": list(self.seeds),
            "alarms": [asdict(each) for each in self.crossed],
            "step_seconds": self.seconds,
            "tokens": self.tokens,
        }


def ended(folder: Path, steps: Sequence[Line], settings: Mapping[str, Any]) -> Ended:
    """How the run in a folder ended.

    Args:
        folder: of the run.
        steps: its lines, both logs together.
        settings: its configuration, nested tables.
    """
    from firstorder.cli.report.outcome import run_outcome
    from firstorder.core.runs.alarm_log import happened
    from firstorder.core.runs.alarm_table import shipped
    from firstorder.core.runs.logs import TIMINGS, read
    from firstorder.core.settings.toml import flat

    events = happened(steps, shipped(), settings["schedule"]["minibatches"])
    outcome = run_outcome(steps, flat(settings), events)
    seed = settings.get("sim", {}).get("seed", 0)
    timed = read(folder / TIMINGS).lines
    whole = len(timed) == len(steps) and bool(timed)
    return Ended(
        folder=folder,
        steps=len(steps),
        outcome=outcome,
        seeds=() if outcome is None else tuple(seed + place for place in outcome.collapsed),
        members=1 if outcome is None else sum(outcome.members.values()),
        crossed=_crossed(events),
        seconds=sum(line["seconds"] for line in timed) if whole else None,
        tokens=sum(line["tokens"] for line in timed) if whole else None,
    )


def _crossed(events: Sequence[Event]) -> tuple[Crossed, ...]:
    """The alarms that started, each with all members that it ever started in."""
    started: dict[str, list[Event]] = {}
    for event in events:
        if event.event == "start":
            started.setdefault(event.alarm, []).append(event)
    return tuple(Crossed(alarm=name, step=those[0].step, members=_members(those)) for name, those in started.items())


def _members(events: Sequence[Event]) -> tuple[int, ...]:
    return tuple(sorted({place for event in events for place in event.members}))
