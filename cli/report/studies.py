"""The answers of studies as figures, one look for each study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figures import COLOURS, arranged, drawn

Rows = Sequence[Mapping[str, Any]]
HOLDS, NOT = COLOURS[0], "0.75"
WIDTH, LINE = 4.2, 0.3  # inches of an axes, and of a line in it


def study(name: str, rows: Rows) -> Figure:
    """The figure of a study by its id."""
    return drawn(lambda: FIGURES[name](rows))


def regimes(rows: Rows) -> Figure:
    """An axes for each axis that was searched: where along it each finding holds, and the two points that its border
    lies between."""
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    columns, lines = arranged(len(axes))
    most = max(sum(row["axis"] == axis for row in rows) for axis in axes)
    figure = Figure(figsize=(WIDTH * columns, lines * (LINE * most + 0.8)), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for ax, axis in zip(panels, axes, strict=False):
        _along(ax, axis, [row for row in rows if row["axis"] == axis])
    for ax in panels[len(axes) :]:
        ax.remove()
    return figure


def _along(ax: Axes, axis: str, rows: Rows) -> None:
    ax.set_title(axis, loc="left")
    ax.set_xscale("log")
    for place, row in enumerate(rows):
        for low, high, holds in _parts(row):
            ax.plot([low, high], [place, place], color=HOLDS if holds else NOT, linewidth=8, solid_capstyle="butt")
        if row["border"] is not None:
            ax.plot([row["below"], row["above"]], [place, place], color="0.1", linewidth=2)
            ax.annotate(
                f"{row['border']:.3g}",
                (row["border"], place),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=7,
            )
    ax.set_yticks(range(len(rows)), [row["finding"] for row in rows])
    ax.set(ylim=(len(rows) - 0.4, -0.6))
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)


def _parts(row: Mapping[str, Any]) -> list[tuple[float, float, bool]]:
    """From where to where a finding holds, or does not."""
    if row["border"] is None:
        return [(row["low"], row["high"], row["holds"])]
    return [(row["low"], row["below"], not row["holds_above"]), (row["above"], row["high"], row["holds_above"])]


FIGURES: Mapping[str, Callable[[Rows], Figure]] = {"regimes": regimes}
