"""What became of a training run, from its logs: it learnt, stayed flat, fell or collapsed; since when; what to change.

Shapes: K evaluations, M members.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from firstorder.core.runs.events import Event
    from firstorder.core.runs.logs import Line

    from .remedies import Branch

State = Literal["collapsed", "fell", "flat", "learned"]
STATES: tuple[State, ...] = ("collapsed", "fell", "flat", "learned")  # of two that are as frequent, the first
JUDGED = {"exact/j_pi": 1, "eval/reward": 1, "reward": 0}  # what says J, best first: steps done after the line's step
WRITTEN = ("state", "members", "quantity", "window", "first", "last", "best", "steps_done", "since")
SAMPLED = "reward"  # of each batch, so that its mean over a window of steps is read


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """What became of a run.

    Args:
        state: collapsed where at least half of the members did, else what most of them did.
        members: how many did what.
        quantity: what was read.
        window: steps of the trailing mean that was read, 1 for the values as they are.
        first, last, best: means over members: of the first evaluation, the last one, and the one with the largest mean.
        steps_done: global steps done at these three.
        since: global steps done at the first evaluation of the first member's collapse; None where none collapsed.
        collapsed: the places of the members that collapsed.
        judged: whether there are enough evaluations to see a collapse.
        alarm: the first alarm that started, None where none was watched, or none did.
        remedies: what is to be changed, and why: what the table of alarms names, then the page on collapse.
    """

    state: State
    members: Mapping[State, int]
    quantity: str
    window: int
    first: float
    last: float
    best: float
    steps_done: tuple[int, int, int]
    since: int | None
    collapsed: tuple[int, ...]
    judged: bool
    alarm: Event | None
    remedies: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"{self.headline}; {self.course}" + (f"; {self.advice}" if self.remedies else "")

    @property
    def headline(self) -> str:
        """What it did, in how many of its members, and since when."""
        count, whole = self.members.get(self.state, 0), sum(self.members.values())
        words = self.state if count == whole else f"{self.state} in {count} of {whole} members"
        if self.state == "collapsed":
            return f"{words}, {'' if whole == 1 else 'the first '}at step {self.since}"
        lost = self.members.get("collapsed", 0)
        return words + (f", collapsed in {lost}, the first at step {self.since}" if lost else "")

    @property
    def course(self) -> str:
        """What was read, at first, at last and at its best."""
        first, last, best = self.steps_done
        mean = f", mean of {self.window} steps" if self.window > 1 else ""
        return (
            f"{self.quantity}{mean}: {self.first:.3g} at step {first}, {self.last:.3g} at step {last}, "
            f"best {self.best:.3g} at step {best}"
        )

    def document(self) -> dict[str, Any]:
        """As JSON; of a remedy what to change."""
        own = {name: getattr(self, name) for name in WRITTEN}
        return own | {"remedies": [remedy for remedy, _ in self.remedies]}

    @property
    def advice(self) -> str:
        """What to change, and why; empty where nothing is named."""
        return "; ".join(f"try {remedy} ({cause})" for remedy, cause in self.remedies)


def run_outcome(lines: Sequence[Line], config: Mapping[str, Any], alarms: Sequence[Event] = ()) -> RunOutcome | None:
    """What became of a run so far; None where nothing says J yet.

    A member collapsed by the rule of `firstorder.sim.trials.collapse.onset`. Of the others one learned where its last J
    is above its first by more than is worth a change of recipe, fell where it is below by as much, and else is flat.

    Args:
        lines: its steps, both logs together, as `firstorder.core.runs.logs.history` gives them.
        config: its settings by dotted key.
        alarms: what `firstorder.core.runs.events.read` gives.
    """
    from firstorder.core.runs.windows import trailing, width
    from firstorder.sim.trials.collapse import PATIENCE, onset

    found = _objective(lines)
    if found is None:
        return None
    name, done, j = found
    window = 1
    if name == SAMPLED:
        window = width(int(config.get("schedule.steps", len(lines))))
        j = trailing(j.T, window).T
    onsets = onset(j)
    members = _members(j, onsets)
    state = _state(members)
    mean = j.mean(0)
    best = int(mean.argmax())
    alarm = next((event for event in alarms if event.event == "start"), None)
    return RunOutcome(
        state=state,
        members=members,
        quantity=name,
        window=window,
        first=float(mean[0]),
        last=float(mean[-1]),
        best=float(mean[best]),
        steps_done=(done[0], done[-1], done[best]),
        since=min((done[k] for k in onsets.tolist() if k >= 0), default=None),
        collapsed=tuple((onsets >= 0).nonzero()[:, 0].tolist()),
        judged=j.shape[-1] >= PATIENCE,
        alarm=alarm,
        remedies=_remedies(state, lines, config, alarm),
    )


def _objective(lines: Sequence[Line]) -> tuple[str, list[int], Tensor] | None:
    """The best of what says J: its name, the steps done at each evaluation, its values `[M, K]`, known in all."""
    from firstorder.core.runs.alarm import column

    for name, after in JUDGED.items():
        logged = [line for line in lines if name in line]
        values = column(logged, name)
        if values is not None and (known := values.isfinite().all(0)).any():
            done = [int(logged[place]["step"]) + after for place in known.nonzero()[:, 0].tolist()]
            return name, done, values[:, known]
    return None


def _members(j: Tensor, onsets: Tensor) -> dict[State, int]:
    """How many members did what, those that some did, from their values `[M, K]` and the places of their collapse."""
    from firstorder.sim.studies.regimes import WORTH

    moved = j[:, -1] - j[:, 0]
    states = [
        "collapsed" if place >= 0 else "learned" if by > WORTH else "fell" if by < -WORTH else "flat"
        for place, by in zip(onsets.tolist(), moved.tolist(), strict=True)
    ]
    counts = Counter(states)
    return {state: counts[state] for state in STATES if counts[state]}


def _state(members: Mapping[State, int]) -> State:
    from firstorder.core.runs.alarm_log import ENOUGH

    if members.get("collapsed", 0) >= ENOUGH * sum(members.values()):
        return "collapsed"
    return max(members, key=lambda state: members[state])


def _remedies(
    state: State, lines: Sequence[Line], config: Mapping[str, Any], alarm: Event | None
) -> tuple[tuple[str, str], ...]:
    """What to change and why: what the alarm names, and what the page does; nothing where it learned without one."""
    from firstorder.core.runs.alarm_table import shipped

    from .remedies import lost, unlearnt

    named = {each.name: (each.remedy, each.cause) for each in shipped().alarms}
    found = [named[alarm.alarm]] if alarm is not None and alarm.alarm in named else []
    branch: Branch | None = None
    if state in ("collapsed", "fell"):
        branch = lost(config, lines)
    elif state == "flat":
        branch = unlearnt(config, lines)
    return (*found, *([(branch.remedy, branch.cause)] if branch is not None else []))
