"""The map of advice: which recipe each pair of engines asks for, over KL and flips, for every N and length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .figures import COLOURS, MARKERS, drawn

Rows = Sequence[Mapping[str, Any]]
PLACED = {"none": 0, "R2": 1, "R3": 2}  # whose colour and marker; others follow
PAPER = (1.5e-3, 0.10)  # arXiv 2510.11370
WIDTH, HEIGHT = 2.5, 2.1  # inches of an axes
SIZE, LARGER = 40, 260  # points squared of a marker, and what a gradient error of 1 adds


def advice(rows: Rows, point: Mapping[str, float] | None = None) -> Figure:
    """A row of axes for each length, a column for each N, at the entropy and the step nearest to a point's; the marker
    grows with the gradient error of what is chosen."""
    return drawn(lambda: _figure(_slice(rows, point), point))


def _slice(rows: Rows, point: Mapping[str, float] | None) -> Rows:
    """The rows of one step and one entropy."""
    wanted = point or {"step": min(row["step"] for row in rows), "entropy": min(row["entropy"] for row in rows)}
    step = min({row["step"] for row in rows}, key=lambda x: abs(math.log(x / wanted["step"])))
    mine = [row for row in rows if row["step"] == step]
    right = min({row["right"]: row["entropy"] for row in mine}.items(), key=lambda x: abs(x[1] - wanted["entropy"]))[0]
    return [row for row in mine if row["right"] == right]


def _figure(rows: Rows, point: Mapping[str, float] | None) -> Figure:
    counts, lengths = (sorted({row[name] for row in rows}) for name in ("updates", "horizon"))
    replays = sorted({_replay(row) for row in rows}, key=lambda name: (PLACED.get(name, 9), name))
    size = (WIDTH * len(counts), HEIGHT * len(lengths) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(lengths), len(counts), squeeze=False, sharex=True, sharey=True)
    for line, horizon in zip(panels, lengths, strict=True):
        for ax, n in zip(line, counts, strict=True):
            mine = [row for row in rows if (row["horizon"], row["updates"]) == (horizon, n)]
            _panel(ax, mine, replays)
            ax.set_title(f"N = {n}, T = {horizon:,}", loc="left")
            if point and round(point["n"]) == n and _nearest(lengths, point["horizon"]) == horizon:
                ax.plot(point["kl"], point["flips"], "x", color="black", markersize=9, markeredgewidth=2)
    for ax in panels[-1]:
        ax.set_xlabel("KL, nats a token")
    for ax in panels[:, 0]:
        ax.set_ylabel("flips")
    figure.legend(handles=_keys(replays, point), loc="outside lower center", ncols=5)
    return figure


def _panel(ax: Axes, rows: Rows, replays: Sequence[str]) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_axisbelow(True)
    for place, name in enumerate(replays):
        mine = [row for row in rows if _replay(row) == name]
        sizes = [SIZE + LARGER * row["gradient_error_natural"] for row in mine]
        x, y = ([row[key] for row in mine] for key in ("kl", "flips"))
        ax.scatter(x, y, s=sizes, color=COLOURS[place], marker=MARKERS[place], alpha=0.8, linewidths=0)
    ax.plot(*PAPER, "+", color="black", markersize=8)
    ax.margins(0.15)


def _keys(replays: Sequence[str], point: Mapping[str, float] | None) -> list[Line2D]:
    """What the markers mean."""
    keys = [
        Line2D([], [], linestyle="none", marker=MARKERS[place], color=COLOURS[place], label=_words(name))
        for place, name in enumerate(replays)
    ]
    keys.append(Line2D([], [], linestyle="none", marker="+", color="black", label="Qwen3-30B-A3B, FP8"))
    if point:
        keys.append(Line2D([], [], linestyle="none", marker="x", color="black", label="asked about"))
    return keys


def _replay(row: Mapping[str, Any]) -> str:
    """The replay of an advice, or the name of a shipped recipe."""
    return str(row["advice"]).partition(",")[0]


def _words(name: str) -> str:
    return "no replay" if name == "none" else name


def _nearest(values: Sequence[float], x: float) -> float:
    return min(values, key=lambda value: abs(math.log(value / x)))
