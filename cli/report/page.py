"""The pages of runs, of training claims and of sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from firstorder.core.runs.windows import width
from firstorder.sim.trials.statistics import LEVEL, RESAMPLES

from . import claimed, kit, top
from .catalogue import Panel, Plot
from .claimed import Settled
from .layers import idle_parts, layer_table
from .panels import TOGETHER
from .rows import shown
from .runs import Run
from .sweeps import Sweep
from .warned import alarm_table

ESTIMATE = (
    "a value is their interquartile mean (plain mean below 4) and an interval the "
    f"{LEVEL:.0%} percentile bootstrap interval over members ({RESAMPLES} resamples, fixed seed)"
)
Drawn = Sequence[tuple[Plot, Mapping[str, bytes]]]
CONSTANT = "A quantity that is the same number in all runs throughout has no figure."
NAMED = 4  # runs that a title names
NARROW = "With few members such an interval is too narrow."


def page(runs: list[Run], table: Sequence[Mapping[str, str]], drawn: Drawn) -> str:
    """The report as one HTML document.

    Args:
        runs: the runs.
        table: one row a run, cells by column, as text.
        drawn: every figure with its images.
    """
    lines = ", ".join(f"{run.label} ({run.recipe})" for run in runs)
    figures = [_figure(plot, images, f"{plot.title} over global steps, runs {lines}") for plot, images in drawn]
    named = ", ".join(run.label for run in runs) if len(runs) <= NAMED else f"{len(runs)} runs"
    constant = kit.note(CONSTANT) if len(runs) > TOGETHER else ""
    last = kit.section("summary", "Last values", _summary(table), kit.note(_intervals(runs)), _idle(runs), constant)
    before = [top.verdict(runs), top.settings(runs), last, _alarms(runs)]
    return kit.document(f"Training report: {named}", [*before, *figures, _layers(runs), top.remedies()])


def claims_page(
    runs: list[Run],
    table: Sequence[Mapping[str, str]],
    drawn: Drawn,
    claims: Sequence[Settled],
    own: Sequence[tuple[Settled, Mapping[str, bytes]]],
) -> str:
    """The report of training claims; arguments as `page`, the claims, and the figures of those that have their own."""
    sections = [_claim(claim, images) for claim, images in own]
    figures = [
        _figure(
            plot,
            images,
            f"{plot.title} over global steps in every condition",
            claimed.read_here(claims, plot.panels[0].key),
        )
        for plot, images in drawn
    ]
    members = max(run.members for run in runs)
    words = kit.note(f"Every run has {members} seeds: {ESTIMATE}, for each step on its own.")
    last = kit.section("summary", "Last values", _summary(table))
    above = claimed.verdicts(claims, [claim.id for claim, _ in own])
    return kit.document("Training claims", [above, words, *sections, *figures, last])


def _claim(claim: Settled, images: Mapping[str, bytes]) -> str:
    shown = f"Exact J over global steps in the conditions of {claim.id}: {claim.verdict}"
    return kit.figure(claim.id, claim.id, images, shown, "", claimed.beside(claim))


def sweep_page(sweep: Sweep, table: Sequence[Mapping[str, str]], drawn: Drawn) -> str:
    """The report of a sweep; arguments as `page`, one row a cell."""
    axes = ", ".join(f"{key} ({len(values)} values)" for key, values in sweep.axes.items())
    figures = [_figure(plot, images, f"{plot.title} over {axes}") for plot, images in drawn]
    members = max(cell.run.members for cell in sweep.cells if cell.run is not None)
    return kit.document(f"Sweep report: {sweep.label}", [_summary(table), kit.note(_cells(members)), *figures])


def _summary(rows: Sequence[Mapping[str, str]]) -> str:
    return kit.keyed(rows, "summary", "summary.csv")


def _intervals(runs: list[Run]) -> str:
    """What the numbers of an ensemble are."""
    several = [run for run in runs if run.members > 1]
    text = f"KL and flip rate are {_last(runs)}; a figure shows each step's own value faint behind its mean."
    if several:
        counts = ", ".join(f"{run.label} {run.members}" for run in several)
        text += f" Where a run has several members ({counts}), {ESTIMATE}, for each step on its own. {NARROW}"
    if len(several) < len(runs):
        text += " A run of one policy has no interval."
    return text


def _last(runs: list[Run]) -> str:
    """Over how many steps the last value of what is sampled is a mean."""
    widths = sorted({width(run.planned) for run in runs})
    if widths[-1] == 1:
        return "those of the last step's batch"
    return f"means over the last {' or '.join(map(str, widths))} steps"


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
            "layers", title, kit.note("Means over all steps and members."), kit.keyed(shown(rows), title, "layers.csv")
        )
        if rows
        else ""
    )


def _alarms(runs: list[Run]) -> str:
    """The alarms of the runs; nothing where none was watched, or none started."""
    rows = alarm_table(runs)
    note = (
        "<p class='note'>As <code>firstorder train --alarm</code> said. A cross in a figure is where an alarm starts "
        "in its first member, with its name, on the curve of what it reads and on those of the reward.</p>"
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


def _figure(plot: Plot, images: Mapping[str, bytes], shown: str, before: str = "") -> str:
    note = kit.note(plot.note) + "\n" if plot.note else ""
    meanings = kit.terms((panel.title, panel.key, _meaning(panel)) for panel in plot.panels)
    return kit.figure(plot.name, plot.title, images, shown, note + meanings, before)


def _meaning(panel: Panel) -> str:
    source = f"; {panel.source}" if panel.source else ""
    alarm = f"; alarm above {panel.alarm:g} there" if panel.alarm is not None else ""
    return f"{panel.meaning} [{panel.unit}]{source}{alarm}"
