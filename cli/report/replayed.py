"""Parts of what an update is off by under each way to replay, an axes for each world and mini-batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figures import COLOURS

Rows = Sequence[Mapping[str, Any]]
PANEL = (2.9, 2.1)  # inches of an axes
LEAST = 1e-4  # of ‖g‖: a part below it is drawn there
PARTS = {
    "numerics": "arithmetic",
    "gates": "gate weights",
    "flips": "routing flips",
    "staleness": "staleness",
    "target": "altered target",
}
"""What is drawn, under the words of the legend."""


def replay(rows: Rows) -> Figure:
    """The figure of the study: lengths relative to the natural gradient, all parts together in black."""
    worlds = list(dict.fromkeys(row["world"] for row in rows))
    updates = sorted({row["updates"] for row in rows})
    size = PANEL[0] * len(updates), PANEL[1] * len(worlds) + 0.4
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(worlds), len(updates), squeeze=False, sharey="row", sharex=True)
    for line, world in zip(panels, worlds, strict=True):
        for ax, s in zip(line, updates, strict=True):
            _panel(ax, [row for row in rows if (row["world"], row["updates"]) == (world, s)])
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), fontsize=8)
    return figure


def _panel(ax: Axes, rows: Rows) -> None:
    first = rows[0]
    ax.set_title(f"{first['world']}, {first['updates']} updates before", loc="left", fontsize=9)
    heights = range(len(rows))
    low, high = ([max(row[key], LEAST) for row in rows] for key in ("whole_low", "whole_high"))
    ax.hlines(heights, low, high, color="0.8", linewidth=5, zorder=0)
    for place, (key, name) in enumerate(PARTS.items()):
        seen = [(max(row[key], LEAST), height) for height, row in enumerate(rows) if row[key] > 0]
        ax.plot(*zip(*seen, strict=True) if seen else ([], []), "o", color=COLOURS[place], label=name, markersize=4)
    ax.plot([row["whole"] for row in rows], heights, "k|", markersize=11, markeredgewidth=2, label="all together")
    ax.set(xscale="log", xlabel="share of the natural gradient", yticks=list(heights))
    ax.set_yticklabels(["no replay" if row["replay"] == "disabled" else row["replay"] for row in rows], fontsize=8)
    if ax.get_subplotspec() is not None and ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        ax.invert_yaxis()
