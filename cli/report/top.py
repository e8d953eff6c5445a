"""The top of a page of runs: what became of them, since when, what to change, and in what they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from . import kit
from .outcome import STATES, RunOutcome
from .remedies import PAGE, SYMPTOMS
from .runs import SEEDS, Run, differences
from .warned import warned

COLUMNS = ("run", "what happened", "first J", "last J", "best J", "first alarm", "what to do")
BAD = ("collapsed", "fell")
UNKNOWN = "nothing logged says its reward yet"
WHY = "remedies"  # where on the page the table of remedies is


def verdict(runs: Sequence[Run]) -> str:
    """What happened, since when and what to do: a box, and a row for each run where there are several."""
    if len(runs) == 1:
        return _box(_bad(runs[0]), f"<strong>{kit.text(_headline(runs[0]))}</strong>", *_details(runs[0]))
    rows = [_row(run) for run in runs]
    filled = [place for place in range(len(COLUMNS)) if any(row[place] for row in rows)]
    cells = [[row[place] for place in filled] for row in rows]
    table = kit.table([COLUMNS[place] for place in filled], cells, "what happened")
    why = f" What to do: {kit.link(f'#{WHY}', 'why')}." if any(row[-1] for row in rows) else ""
    note = f"{_read(runs)}{why}"
    box = _box(any(map(_bad, runs)), f"<strong>{kit.text(_counted(runs))}</strong>")
    return f"{box}\n{table}\n<p class='note'>{note}</p>"


def settings(runs: Sequence[Run]) -> str:
    """The seeds, and the settings in which the runs differ."""
    seeds = {"seeds": [run.seeds for run in runs]}
    if len(runs) == 1:
        (run,) = runs
        return kit.note(f"Recipe {run.recipe}, seeds {run.seeds}, {_steps(run)}.")
    rows = seeds | {key: list(map(_value, row)) for key, row in differences(runs).items() if key not in SEEDS}
    title = "Settings that differ, and seeds"
    same = "" if len(rows) > 1 else "<p>The runs have the same configuration.</p>"
    if len(runs) <= len(rows):
        lines = [[key, *row] for key, row in rows.items()]
        table = kit.table(["setting", *(run.label for run in runs)], lines, title, code=True)
    else:
        lines = [[run.label, *(row[i] for row in rows.values())] for i, run in enumerate(runs)]
        table = kit.table(["run", *rows], lines, title)
    return kit.section("configuration", title, same, table)


def remedies() -> str:
    """The table from which remedies are taken."""
    lines = [
        [
            symptom.seen if i == 0 else "",
            ", ".join(symptom.numbers) if i == 0 else "",
            row.reading,
            row.cause,
            row.remedy,
        ]
        for symptom in SYMPTOMS
        for i, row in enumerate(symptom.branches)
    ]
    title = "From what is seen to what to change"
    table = kit.table(("seen", "look at", "they say", "cause", "remedy"), lines, title)
    words = (
        "The row of a run follows from its state, N, whether anything was clipped, and its ratio. What backs each row"
    )
    return kit.section(WHY, title, kit.note(f"{words}: {PAGE}."), table)


def _box(bad: bool, *paragraphs: str) -> str:
    inner = "".join(f"<p>{each}</p>" for each in paragraphs if each)
    return f'<div class="verdict{" fault" if bad else ""}">{inner}</div>'


def _bad(run: Run) -> bool:
    return run.outcome is not None and run.outcome.state in BAD


def _headline(run: Run) -> str:
    words = UNKNOWN if run.outcome is None else run.outcome.headline
    return f"{words[0].upper()}{words[1:]}" + ("" if run.steps == run.planned else f", {_steps(run)} so far")


def _details(run: Run) -> list[str]:
    """The course, the alarm and the advice of one run, as HTML."""
    found = run.outcome
    if found is None:
        return []
    few = "" if found.judged else " There are too few evaluations to see a collapse."
    return [kit.text(f"{found.course}.{few}"), _alarmed(run), _advice(found)]


def _alarmed(run: Run) -> str:
    first = next(iter(warned(run)), None)
    if first is None:
        return ""
    return kit.text(f"First alarm: {first.alarm} at step {first.start}, in {first.members} of {run.members} members.")


def _advice(found: RunOutcome) -> str:
    if not found.remedies:
        return "Nothing to change." if found.state == "learned" else "No remedy is named for this."
    tries = "; ".join(f"<code>{kit.text(remedy)}</code>, against {kit.text(cause)}" for remedy, cause in found.remedies)
    return f"Try {tries} ({kit.link(f'#{WHY}', 'why')})."


def _counted(runs: Sequence[Run]) -> str:
    """How many runs did what; those that did not learn by name."""
    counts = Counter("unknown" if run.outcome is None else run.outcome.state for run in runs)
    parts = []
    for state in (*STATES, "unknown"):
        names = [run.label for run in runs if (run.outcome.state if run.outcome else "unknown") == state]
        if names:
            parts.append(f"{counts[state]} of {len(runs)} {state}" + (f" ({', '.join(names)})" if state in BAD else ""))
    return "; ".join(parts)


def _row(run: Run) -> list[str]:
    found, first = run.outcome, next(iter(warned(run)), None)
    if found is None:
        return [run.label, UNKNOWN, *[""] * (len(COLUMNS) - 2)]
    course = [
        f"{value:.3g} at {step}"
        for value, step in zip((found.first, found.last, found.best), found.steps_done, strict=True)
    ]
    alarm = "" if first is None else f"{first.alarm} at {first.start}"
    advice = "; ".join(remedy for remedy, _ in found.remedies)
    return [run.label, _headline(run), *course, alarm, advice]


def _read(runs: Sequence[Run]) -> str:
    """What J is in the rows."""
    read: dict[str, list[str]] = {}
    for run in runs:
        if run.outcome is not None:
            window = f", mean of {run.outcome.window} steps" if run.outcome.window > 1 else ""
            read.setdefault(f"{run.outcome.quantity}{window}", []).append(run.label)
    whole = len(read) == 1
    which = "; ".join(name if whole else f"{name} ({', '.join(labels)})" for name, labels in read.items())
    return kit.text(f"J at a global step: {which}, mean over members.")


def _steps(run: Run) -> str:
    return f"{run.steps} steps" if run.steps == run.planned else f"{run.steps} of {run.planned} steps"


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    return str(value).lower() if isinstance(value, bool) else str(value)
