"""Where something happened, on the curves of a run: where it collapsed, and where alarms started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .catalogue import REWARD
from .curves import Curve
from .runs import Run
from .warned import Warned, warned

MARKED_TOO = {panel.key for panel in REWARD}  # beside the quantity that an alarm reads: what it warns of
LINE = 8  # points that a label is high
WORDS: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "annotation_clip": False}


def mark(ax: Axes, curves: Sequence[Curve], colour: str, place: int) -> None:
    """Shade a run from its first collapse on, and cross its curves where an alarm starts, each with its name.

    Args:
        ax: the axes.
        curves: of one run.
        colour: of that run.
        place: among the runs of the axes: names of several do not lie on one another.
    """
    for curve in curves:
        _collapse(ax, curve, colour, place)
        for each in warned(curve.run):
            if curve.panel.key == each.quantity or curve.panel.key in MARKED_TOO:
                _cross(ax, curve, each, colour)


def _collapse(ax: Axes, curve: Curve, colour: str, place: int) -> None:
    """A line where the first of its members collapsed, shaded from there to its last step."""
    outcome = curve.run.outcome
    if outcome is None or outcome.since is None:
        return
    gid = f"collapse {curve.run.label}"
    ax.axvline(outcome.since, color=colour, linestyle=(0, (4, 2)), linewidth=1, gid=gid)
    ax.axvspan(outcome.since, max(outcome.since, int(curve.steps_done[-1])), color="0.5", alpha=0.1, linewidth=0)
    where = (outcome.since, 1)
    ax.annotate(
        f"collapse{_among(curve.run)}",
        where,
        (2, -LINE * (place + 1)),
        xycoords=("data", "axes fraction"),
        color=colour,
        **WORDS,
    )


def _among(run: Run) -> str:
    """In how many members, if it has several."""
    assert run.outcome is not None
    return "" if run.members == 1 else f", {run.outcome.members.get('collapsed', 0)} of {run.members}"


def _cross(ax: Axes, curve: Curve, alarm: Warned, colour: str) -> None:
    """A cross on the curve at the step at which an alarm starts, or the next one that is drawn."""
    at = int(np.searchsorted(curve.steps, alarm.start))
    if at == len(curve.steps):
        return
    point = curve.steps_done[at], curve.mean[at]
    gid = f"warned {curve.run.label}: {alarm.alarm}"
    ax.plot([point[0]], [point[1]], "X", ms=9, mfc=colour, mec="black", mew=1.2, zorder=5, gid=gid)
    ax.annotate(alarm.alarm, point, (6, 5), color=colour, zorder=6, **WORDS)
