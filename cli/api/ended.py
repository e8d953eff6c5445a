"""How a training run ended: what became of it, the seeds that collapsed, the alarms it crossed, what it took, and the
next command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstorder.cli.report.outcome import RunOutcome
    from firstorder.cli.report.warned import Warned
    from firstorder.core.runs.logs import Line


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended.

    Args:
        folder: of the run.
        steps: global steps done.
        outcome: what became of it, None where nothing says J.
        seeds: those of the members that collapsed.
        members: how many there are.
        warned: the alarms that started, watched or not, in the order of their steps.
        seconds, tokens: that all steps took, and the response tokens of all batches; None where they were not noted.
    """

    folder: Path
    steps: int
    outcome: RunOutcome | None
    seeds: tuple[int, ...]
    members: int
    warned: tuple[Warned, ...]
    seconds: float | None
    tokens: int | None

    def lines(self) -> Iterator[str]:
        """The verdict for people, a line each."""
        from firstorder.cli.report.remedies import PAGE

        yield f"{self.folder}: {self.steps} steps{self._took()}"
        if self.outcome is not None:
            yield f"verdict: {self.outcome.headline}"
            yield f"J: {self.outcome.course}"
        if self.seeds:
            yield f"collapsed seeds: {', '.join(map(str, self.seeds))}"
        for each in self.warned:
            among = f" in {each.members} of {self.members} members" if self.members > 1 else ""
            yield f"alarm: {each.alarm}{among}, since step {each.start}"
        if self.outcome is not None and self.outcome.remedies:
            yield f"what to do: {self.outcome.advice}; {PAGE} says why"
        yield f"next: firstorder report {self.folder} --out {self.folder}-report --open"

    def _took(self) -> str:
        if self.seconds is None or self.tokens is None:
            return ""
        return f" in {self.seconds:.3g} s, {self.tokens:,} tokens, {self.tokens / self.seconds:,.0f} tokens/s"

    def document(self) -> dict[str, Any]:
        """As it stands in the JSON of a run."""
        return {
            "outcome": None if self.outcome is None else self.outcome.document(),
            "collapsed_seeds": list(self.seeds),
            "alarms": [asdict(each) for each in self.warned],
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
    from firstorder.cli.report.warned import summed
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
        warned=tuple(summed(events)),
        seconds=sum(line["seconds"] for line in timed) if whole else None,
        tokens=sum(line["tokens"] for line in timed) if whole else None,
    )
