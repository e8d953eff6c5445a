"""Bias against variance of every recipe, an axes for each condition, and lines of equal progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figures import COLOURS, MARKERS, arranged

Rows = Sequence[Mapping[str, Any]]
PANEL = (4.6, 3.6)  # inches of an axes
SMALLEST, LEAST = 1e-6, 1e-5  # of ‖g‖²: a bias below the one, or a variance below the other, is drawn there
LARGEST = 1e4  # a variance above it is drawn there
LEVELS = (0.1, 0.3, 1.0)  # of the progress on policy
NEAR = 0.1  # decades: points that near are one, and have one label
NAMED = 2  # recipes of one label by name
SIDE, WIDE, LINE = 0.6, 0.3, 0.035  # of an axes: labels left of it beyond, that may meet, and the height of one
MIDDLE = 0.5  # labels of points above it go down, those of points below it up
KINDS = ("no replay", "R2", "R3", "a baseline known beforehand")


def frontier(rows: Rows) -> Figure:
    """The figure of the study: both axes in units of ‖g‖²."""
    names = list(dict.fromkeys(row["condition"] for row in rows))
    columns, lines = arranged(len(names))
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for ax, name in zip(panels, names, strict=False):
        _condition(ax, name, [row for row in rows if row["condition"] == name])
    for ax in panels[len(names) :]:
        ax.remove()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))
    return figure


def _condition(ax: Axes, name: str, rows: Rows) -> None:
    ax.set_title(f"{name}: KL {rows[0]['kl']:.2g}, flips {rows[0]['flips']:.2g}", loc="left")
    for place, kind in enumerate(KINDS):
        mine = [_point(row) for row in rows if _kind(row) == place]
        ax.plot(*np.array(mine).reshape(-1, 2).T, MARKERS[place], color=COLOURS[place], label=kind, alpha=0.8)
    points = [(_point(row), row["recipe"]) for row in rows]
    ax.set(xscale="log", yscale="log", xlim=(SMALLEST / 2, 2), xlabel="bias², of ‖g‖²", ylabel="variance, of ‖g‖²")
    low, high = min(y for (_, y), _ in points) / 3, max(y for (_, y), _ in points) * 3
    ax.set_ylim(low, high)
    _name(ax, _labels(points))
    _equal(ax, rows[0]["on_policy"], (low, high))


def _name(ax: Axes, labels: Sequence[tuple[tuple[float, float], str]]) -> None:
    """Write labels beside their points, towards the middle, where none is yet."""
    to_axes = ax.transScale + ax.transLimits
    placed: list[tuple[float, float]] = []
    spots = sorted((tuple(to_axes.transform(at)), at, label) for at, label in labels)
    for (x, y), at, label in sorted(spots, key=lambda spot: abs(spot[0][1] - MIDDLE), reverse=True):
        right = x < SIDE
        text_x = x + 0.03 if right else x - 0.03
        beside = sorted(height for where, height in placed if abs(where - text_x) < WIDE)
        text_y = _free(y, beside, -LINE if y > MIDDLE else LINE)
        placed.append((text_x, text_y))
        ax.annotate(
            label,
            at,
            xytext=(text_x, text_y),
            textcoords="axes fraction",
            ha="left" if right else "right",
            va="center",
            fontsize=5.5,
            color="0.2",
            arrowprops={"arrowstyle": "-", "color": "0.8", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0},
        )


def _free(y: float, taken: Sequence[float], step: float) -> float:
    """The first height from y on that is a line away from all that are taken."""
    while any(abs(y - other) < abs(step) - 1e-9 for other in taken):
        y += step / 4
    return y


def _equal(ax: Axes, on_policy: float, ends: tuple[float, float]) -> None:
    """Where (1 - bias)² / (1 - bias + variance) is so much of the progress on policy."""
    bias = 1 - np.geomspace(1e-4, 1, 400)[:-1]
    bias = np.concatenate([np.geomspace(SMALLEST / 2, 0.5, 100), np.sort(bias[bias > 0.5])])
    for level in LEVELS:
        variance = (1 - bias) ** 2 / (level * on_policy) - (1 - bias)
        shown = variance > ends[0]
        ax.plot(bias[shown], variance[shown], color="0.7", linewidth=0.8, zorder=0)
        if shown.any() and variance[shown][0] < ends[1]:
            ax.annotate(
                f"{level:g}", (bias[shown][0], variance[shown][0]), fontsize=6, color="0.5", va="bottom", ha="left"
            )


def _point(row: Mapping[str, Any]) -> tuple[float, float]:
    """Bias and variance of a row, within the axes."""
    variance = LARGEST if row["variance"] is None else min(row["variance"], LARGEST)
    return max(row["bias"], SMALLEST), max(variance, LEAST)


def _kind(row: Mapping[str, Any]) -> int:
    if row["oracle"]:
        return 3
    return next((place for place, mode in ((1, "-r2"), (2, "-r3")) if mode in row["recipe"]), 0)


def _labels(points: Sequence[tuple[tuple[float, float], str]]) -> list[tuple[tuple[float, float], str]]:
    """One label for points that lie together: the first of them by name, of the others how many."""
    groups: list[tuple[tuple[float, float], list[str]]] = []
    for at, name in points:
        for where, names in groups:
            if all(abs(np.log10(a / b)) < NEAR for a, b in zip(at, where, strict=True)):
                names.append(name)
                break
        else:
            groups.append((at, [name]))
    return [
        (at, ", ".join(names[:NAMED]) + (f" +{len(names) - NAMED}" if len(names) > NAMED else ""))
        for at, names in groups
    ]
