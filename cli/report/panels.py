"""Figures of runs over their steps: a few in one axes, many in axes of their own with the others grey behind."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .catalogue import Panel, Plot
from .curves import Curve, windows
from .figures import COLOURS, LABEL, across, arranged, dress, images, line, name_lines, scale, short
from .marks import mark
from .runs import Run

TOGETHER = 6  # runs in one axes; of more, each has its own
WIDTH, HEIGHT = 3.6, 2.7  # inches of an axes
ALONE = 4.4  # inches of a figure of one axes, which a phone shows, too
SMALL = 1.9  # inches that an axes is high where each run has its own
HEAD = 0.6  # inches above them, for what they show
PHONE_WIDTH = 3.9  # inches of a figure for a phone
SHORT = 26  # characters of a run's name above an axes of its own
GREY, BEHIND = "0.75", 60  # of the runs behind: their colour, and how many points of each


def draw(plot: Plot, runs: list[Run], curves: Sequence[Curve]) -> dict[str, bytes]:
    """A figure of runs over their steps, as PNG and SVG, by suffix, and where it is wide as SVG for a phone."""
    whole = images(lambda: over_steps(plot, runs, curves))
    if len(plot.panels) == 1 and len(runs) <= TOGETHER:
        return whole
    return whole | {"phone": images(lambda: over_steps(plot, runs, curves, phone=True), ("svg",))["svg"]}


def over_steps(plot: Plot, runs: list[Run], curves: Sequence[Curve], phone: bool = False) -> Figure:
    """A figure of runs over their steps."""
    return (_together if len(runs) <= TOGETHER else _multiples)(plot, runs, curves, phone)


def _together(plot: Plot, runs: list[Run], curves: Sequence[Curve], phone: bool) -> Figure:
    """An axes for each quantity, a line for each run."""
    columns, rows = (1, len(plot.panels)) if phone else arranged(len(plot.panels))
    named = [_name(run) for run in runs]
    width = PHONE_WIDTH if phone else max(ALONE, WIDTH * columns)
    fits = across(named, width)
    figure = Figure(figsize=(width, HEIGHT * rows + 0.2 * math.ceil(len(runs) / fits) + 0.1), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=plot.shared).flat)
    for ax, panel in zip(axes, plot.panels, strict=False):
        for place, run in enumerate(runs):
            mine = _of(curves, panel, run)
            line(ax, mine, place, len(runs))
            mark(ax, mine, COLOURS[place % len(COLOURS)], place)
        _alarm(ax, panel)
        dress(ax, _title(panel, curves, "\n"))
        scale(ax, panel.unit, plot.panels if plot.shared else (panel,), curves)
    for ax in axes[len(plot.panels) :]:
        ax.remove()
    name_lines(figure, named, fits)
    return figure


def _multiples(plot: Plot, runs: list[Run], curves: Sequence[Curve], phone: bool) -> Figure:
    """For each quantity an axes for each run, all on one scale, in which the other runs are grey."""
    columns, rows = (2, math.ceil(len(runs) / 2)) if phone else arranged(len(runs))
    width, height = (PHONE_WIDTH if phone else WIDTH * columns), SMALL * rows + HEAD
    whole = height * len(plot.panels)
    figure = Figure(figsize=(width, whole))
    for number, panel in enumerate(plot.panels):
        top = whole - number * height
        figure.text(0.1 / width, (top - 0.2) / whole, _title(panel, curves), fontweight="bold", va="center")
        sides = {"left": 0.65 / width, "right": 1 - 0.1 / width, "wspace": 0.08, "hspace": 0.35}
        ends = {"top": (top - HEAD) / whole, "bottom": (top - height + 0.45) / whole}
        grid = figure.add_gridspec(rows, columns, **sides, **ends)
        axes = list(grid.subplots(squeeze=False, sharex=True, sharey=True).flat)
        for ax, run in zip(axes, runs, strict=False):
            _one(ax, panel, run, curves)
            scale(ax, panel.unit, (panel,), curves)
        for place, ax in enumerate(axes[: len(runs)]):
            last = place + columns >= len(runs)
            ax.set_xlabel("global steps done" if last else "")
            ax.tick_params(labelleft=place % columns == 0, labelbottom=last)
            if place % columns:
                ax.set_ylabel("")
        for ax in axes[len(runs) :]:
            ax.remove()
    return figure


def _one(ax: Axes, panel: Panel, run: Run, curves: Sequence[Curve]) -> None:
    """A run in colour before all others in grey."""
    dress(ax, _name(run, SHORT))
    mine = _of(curves, panel, run)
    behind = [_thinned(c) for c in curves if c.panel is panel and c.run is not run]
    ax.add_collection(LineCollection(behind, colors=GREY, linewidths=0.6, zorder=1, gid="others"))
    line(ax, mine, 0, 1)
    mark(ax, mine, COLOURS[0], 0)
    _alarm(ax, panel)
    if not mine:
        ax.text(0.5, 0.5, "not logged", transform=ax.transAxes, ha="center", color="0.4")


def _thinned(curve: Curve) -> NDArray[np.float64]:
    """The points of a curve behind others, `[P, 2]`: all of a short one, so many of a long one."""
    count = len(curve.steps)
    places = np.linspace(0, count - 1, min(count, BEHIND)).round().astype(int)
    return np.column_stack([curve.steps_done[places], curve.mean[places]])


def _of(curves: Sequence[Curve], panel: Panel, run: Run) -> list[Curve]:
    return [curve for curve in curves if curve.panel is panel and curve.run is run]


def _title(panel: Panel, curves: Sequence[Curve], between: str = ", ") -> str:
    """Its name, and over how many steps it is a mean."""
    over = windows([curve for curve in curves if curve.panel is panel])
    return f"{panel.title}{between}{over}" if over else panel.title


def _alarm(ax: Axes, panel: Panel) -> None:
    """The level of danger of the quantity's source, if it names one; the axis reaches it."""
    if panel.alarm is None:
        return
    ax.axhline(panel.alarm, color="0.25", linestyle=":", linewidth=1.2, gid=f"alarm {panel.key}")
    ax.annotate(
        f"alarm {panel.alarm:g}",
        (1, panel.alarm),
        xycoords=("axes fraction", "data"),
        xytext=(-2, -2),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=7,
        color="0.25",
    )


def _name(run: Run, letters: int = LABEL) -> str:
    return short(run.label if run.label == run.recipe else f"{run.label}: {run.recipe}", letters)
