"""The pages of runs, of training claims and of sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from firstorder.sim.trials.statistics import LEVEL, RESAMPLES

from . import kit
from .catalogue import Panel, Plot
from .layers import idle_parts, layer_table
from .runs import Run, differences
from .sweeps import Sweep
from .warned import alarm_table

ESTIMATE = (
    "a value is their interquartile mean (plain mean below 4) and an interval the "
    f"{LEVEL:.0%} percentile bootstrap interval over members ({RESAMPLES} resamples, fixed seed)"
)
NARROW = "With few members such an interval is too narrow."


def page(runs: list[Run], table: Sequence[Mapping[str, str]], drawn: Sequence[tuple[Plot, bytes]]) -> str:
    """The report as one HTML document.

    Args:
        runs: the runs.
        table: one row a run, cells by column, as text.
        drawn: every figure with its SVG.
    """
    lines = ", ".join(f"{run.label} ({run.recipe})" for run in runs)
    figures = [_figure(plot, svg, f"{plot.title} over global steps, runs {lines}") for plot, svg in drawn]
    title = "Training report: " + ", ".join(run.label for run in runs)
    before = [_summary(table), kit.note(_intervals(runs)), _idle(runs), _alarms(runs), _differences(runs)]
    return kit.document(title, [*before, *figures, _layers(runs)])


def claims_page(runs: list[Run], table: Sequence[Mapping[str, str]], drawn: Sequence[tuple[Plot, bytes]]) -> str:
    """The report of the runs of training claims; arguments as `page`."""
    figures = [_figure(plot, svg, f"{plot.title} over global steps in every condition") for plot, svg in drawn]
    members = max(run.members for run in runs)
    words = kit.note(f"Every run has {members} seeds: {ESTIMATE}, for each step on its own.")
    return kit.document("Training claims", [_summary(table), words, *figures])


def sweep_page(sweep: Sweep, table: Sequence[Mapping[str, str]], drawn: Sequence[tuple[Plot, bytes]]) -> str:
    """The report of a sweep; arguments as `page`, one row a cell."""
    axes = ", ".join(f"{key} ({len(values)} values)" for key, values in sweep.axes.items())
    figures = [_figure(plot, svg, f"{plot.title} over {axes}") for plot, svg in drawn]
    members = max(cell.run.members for cell in sweep.cells if cell.run is not None)
    return kit.document(f"Sweep report: {sweep.label}", [_summary(table), kit.note(_cells(members)), *figures])


def _summary(rows: Sequence[Mapping[str, str]]) -> str:
    return kit.keyed(rows, "summary", "summary.csv")


def _intervals(runs: list[Run]) -> str:
    """What the numbers of an ensemble are."""
    several = [run for run in runs if run.members > 1]
    text = "KL and flip rate are those of the last step's batch."
    if several:
        counts = ", ".join(f"{run.label} {run.members}" for run in several)
        text += f" Where a run has several members ({counts}), {ESTIMATE}, for each step on its own. {NARROW}"
    if len(several) < len(runs):
        text += " A run of one policy has no interval."
    return text


def _idle(runs: list[Run]) -> str:
    """The parts that could not act; nothing if all could."""
    named = [f"{run.label} {', '.join(idle)}" for run in runs if (idle := idle_parts(run))]
    return kit.note(f"Could not act in the schedule: {'; '.join(named)}.") if named else ""


def _layers(runs: list[Run]) -> str:
    """What replay did by layer; nothing where it was not logged."""
    rows = layer_table(runs)
    title = "What replay did, by layer"
    return (
        kit.section(
            "layers", title, kit.note("Means over all steps and members."), kit.keyed(rows, title, "layers.csv")
        )
        if rows
        else ""
    )


def _alarms(runs: list[Run]) -> str:
    """The alarms of the runs; nothing where none was watched, or none started."""
    rows = alarm_table(runs)
    note = (
        "<p class='note'>As <code>firstorder train --alarm</code> said. A cross in a figure is where an alarm starts "
        "in its first member, on the curve of what it reads and on those of the reward.</p>"
    )
    return kit.section("alarms", "Alarms", note, kit.keyed(rows, "alarms", "alarms.csv")) if rows else ""


def _cells(members: int) -> str:
    """What the numbers of a sweep are."""
    text = (
        f"Where a cell has several members, {ESTIMATE}. {NARROW}"
        if members > 1
        else "Every cell is a run of one policy, so there are no intervals: set sim.members for an ensemble of seeds."
    )
    text += " A hatched or empty place is a cell that is to do, stopped early or did not log the quantity."
    return text + " Each finished cell is a run folder, cells/NUMBER, of which firstorder report shows the steps."


def _differences(runs: list[Run]) -> str:
    if len(runs) == 1:
        return ""
    differing = differences(runs)
    if not differing:
        return kit.section("configuration", "Configuration", "<p>The runs have the same configuration.</p>")
    title = "Where the configurations differ"
    rows = [[key, *map(_value, row)] for key, row in differing.items()]
    return kit.section("configuration", title, kit.table(["key", *(run.label for run in runs)], rows, title, code=True))


def _figure(plot: Plot, svg: bytes, shown: str) -> str:
    note = kit.note(plot.note) + "\n" if plot.note else ""
    meanings = kit.terms((panel.title, panel.key, _meaning(panel)) for panel in plot.panels)
    return kit.figure(plot.name, plot.title, svg, shown, note + meanings)


def _meaning(panel: Panel) -> str:
    source = f"; {panel.source}" if panel.source else ""
    alarm = f"; alarm above {panel.alarm:g} there" if panel.alarm is not None else ""
    return f"{panel.meaning} [{panel.unit}]{source}{alarm}"


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    return str(value).lower() if isinstance(value, bool) else str(value)
