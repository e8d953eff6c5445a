"""The figure of the study of bounds: what each says as responses grow, how near a search comes to it, and margins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figures import COLOURS, DASHES, MARKERS

Rows = Sequence[Mapping[str, Any]]
SIZE = (13, 9.5)  # inches
WIDTHS = (1, 1, 0.9)  # of the columns
LEAD = 0.06  # of the width of an axes, between the end of a line and its name
LINES = 34  # names that the height of an axes has room for


def bounds(rows: Rows) -> Figure:
    """Bounds and the exact error over T, the largest share that a search found of each, thin margins and flips."""
    figure = Figure(figsize=SIZE, layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(1.1, 1), width_ratios=WIDTHS)
    over = [row for row in rows if row["part"].startswith("length")]
    for place, (of, title) in enumerate(
        (("error", "|error| and bounds on it"), ("replay", "|replay bias| of R3 and bounds on it"))
    ):
        _lengths(figure.add_subplot(grid[0, place]), title, [row for row in over if row["of"] == of])
    _searched(figure.add_subplot(grid[:, 2]), [row for row in rows if row["part"] == "search"])
    for place, (part, title, x) in enumerate(
        (
            ("margins", "share of margins below ε", "ε, in the router's own score"),
            ("flips", "share of routes that flip", "relative noise"),
        )
    ):
        _routes(figure.add_subplot(grid[1, place]), title, x, [row for row in rows if row["part"] == part])
    return figure


def _lengths(ax: Axes, title: str, rows: Rows) -> None:
    """Medians over T: what is bounded in black, and each bound; named at the right, those above 1 say nothing."""
    ax.set(xscale="log", yscale="log")
    ax.set_title(title, loc="left")
    ax.axhspan(1, 1e12, color="0.95", zorder=0)
    names = list(dict.fromkeys(row["name"] for row in rows))
    ends = []
    for place, name in enumerate(names):
        mine = [row for row in rows if row["name"] == name]
        colour, dash = COLOURS[place % 6], DASHES[place // 6 * 2]
        ax.plot([row["at"] for row in mine], [row["limit"] for row in mine], color=colour, linestyle=dash)
        ends.append((mine[-1]["limit"], name, colour))
    first = [row for row in rows if row["name"] == names[0]]
    ax.plot([row["at"] for row in first], [row["error"] for row in first], color="black", linewidth=2.2, marker="o")
    ends.append((first[-1]["error"], "exact", "black"))
    low, high = min(row["error"] for row in first) / 5, 30 * max(row["limit"] for row in rows)
    ax.set(ylim=(low, high), xlabel="T, tokens")
    ax.set_xlim(right=first[-1]["at"])  # where names begin
    _named(ax, ends, (high / low) ** (1 / LINES))


def _named(ax: Axes, ends: Sequence[tuple[float, str, str]], line: float) -> None:
    """Names at the ends of lines, which lead to them, a factor `line` apart where they would lie on one another."""
    last = 0.0
    for value, name, colour in sorted(ends):
        last = max(value, last * line)
        ax.plot(
            [1, 1 + LEAD], [value, last], color=colour, linewidth=0.5, transform=ax.get_yaxis_transform(), clip_on=False
        )
        ax.text(1 + 1.2 * LEAD, last, name, color=colour, fontsize=7, va="center", transform=ax.get_yaxis_transform())


def _searched(ax: Axes, rows: Rows) -> None:
    """The largest share of each bound that was found, a mark for each size of the tree."""
    names = list(dict.fromkeys((row["of"], row["name"]) for row in rows))
    sizes = list(dict.fromkeys((row["vocab"], row["at"]) for row in rows))
    ax.axvline(1, color="0.4", linewidth=0.8)
    for place, (vocab, horizon) in enumerate(sizes):
        mine = [row for row in rows if (row["vocab"], row["at"]) == (vocab, horizon)]
        ax.plot(
            [row["largest"] for row in mine],
            [names.index((row["of"], row["name"])) for row in mine],
            linestyle="none",
            marker=MARKERS[place],
            color=COLOURS[place],
            label=f"V = {vocab}, T = {horizon}",
        )
    ax.set_yticks(range(len(names)), [name for _, name in names])
    ax.set(xlim=(0, 1.05), ylim=(len(names) - 0.4, -0.6))
    ax.set_title("largest share that a search found", loc="left")
    ax.legend(loc="lower left", fontsize=7)


def _routes(ax: Axes, title: str, x: str, rows: Rows) -> None:
    """A line for each router, with its interval, and one of slope 1."""
    ax.set(xscale="log", yscale="log", xlabel=x)
    ax.set_title(title, loc="left")
    names = list(dict.fromkeys(row["name"] for row in rows))
    for place, name in enumerate(names):
        mine = [row for row in rows if row["name"] == name and row["ratio"]]
        at = [row["at"] for row in mine]
        low, high = ([row[end] or row["ratio"] for row in mine] for end in ("low", "high"))
        ax.fill_between(at, low, high, color=COLOURS[place], alpha=0.15, linewidth=0)
        ax.plot(at, [row["ratio"] for row in mine], color=COLOURS[place], marker=MARKERS[place], label=name)
    first = [row for row in rows if row["name"] == names[0] and row["ratio"]]
    base = 0.4 * first[0]["ratio"] / first[0]["at"]
    ax.plot(
        [row["at"] for row in first],
        [base * row["at"] for row in first],
        color="0.5",
        linestyle=DASHES[1],
        label="slope 1",
    )
    ax.legend(fontsize=7)
