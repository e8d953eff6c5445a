"""The answers of studies as figures, one look for each study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from .advice import advice
from .figures import COLOURS, arranged, drawn
from .frontier import frontier
from .replayed import replay
from .tight import bounds

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
    ax.xaxis.set_minor_formatter(NullFormatter())
    findings = list(dict.fromkeys(row["finding"] for row in rows))
    for place, finding in enumerate(findings):
        mine = [row for row in rows if row["finding"] == finding]
        for low, high, holds in _parts(mine):
            ax.plot([low, high], [place, place], color=HOLDS if holds else NOT, linewidth=8, solid_capstyle="butt")
        for row in mine:
            if row["border"] is not None:
                _mark(ax, place, row)
    ax.set_yticks(range(len(findings)), findings)
    ax.set(ylim=(len(findings) - 0.4, -0.6))
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)


def _mark(ax: Axes, place: int, row: Mapping[str, Any]) -> None:
    """The two points that a border lies between, and the border."""
    ax.plot([row["below"], row["above"]], [place, place], color="0.1", linewidth=2)
    ax.annotate(
        f"{row['border']:.3g}",
        (row["border"], place),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        fontsize=7,
    )


def _parts(rows: Rows) -> list[tuple[float, float, bool]]:
    """From where to where a finding holds, or does not; rows are those of its borders, ascending, or one without."""
    first = rows[0]
    if first["border"] is None:
        return [(first["low"], first["high"], first["holds"])]
    ends = [first["low"], *(end for row in rows for end in (row["below"], row["above"])), first["high"]]
    states = [not first["holds_above"], *(row["holds_above"] for row in rows)]
    return list(zip(ends[::2], ends[1::2], states, strict=True))


def causes(rows: Rows) -> Figure:
    """An axes for each run that declines: the share of its loss that goes with each suspect, with its interval, and the
    two shares that it is judged by."""
    names = list(dict.fromkeys(row["condition"] for row in rows))
    parts = {name: [row for row in rows if row["condition"] == name and row["removal"]] for name in names}
    columns, lines = arranged(len(names))
    most = max(map(len, parts.values()))
    figure = Figure(figsize=(WIDTH * columns, lines * (LINE * most + 0.8)), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for ax, name in zip(panels, names, strict=False):
        _shares(ax, name, parts[name])
    for ax in panels[len(names) :]:
        ax.remove()
    return figure


def _shares(ax: Axes, name: str, rows: Rows) -> None:
    ax.set_title(name, loc="left")
    for edge in (0.25, 0.5):
        ax.axvline(edge, color="0.8", linewidth=1)
    for place, row in enumerate(rows):
        colour = HOLDS if row["verdict"] in ("cause", "in part") else NOT
        ends = [min(max(row[key], -1.0), 1.5) for key in ("share_low", "share_high", "share")]
        ax.plot(ends[:2], [place, place], color=colour, linewidth=3, solid_capstyle="butt")
        ax.plot(ends[2], place, "o", color=colour)
    ax.set_yticks(range(len(rows)), [f"{row['suspect']}: {row['removal']}" for row in rows])
    ax.set(ylim=(len(rows) - 0.4, -0.6), xlim=(-1.05, 1.55), xlabel="share of the loss that goes")
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)


def warnings(rows: Rows) -> Figure:
    """Each way to read a log with its AUC on held-out conditions and its interval; in colour what became an alarm."""
    known = [row for row in rows if row["auc"] is not None]
    figure = Figure(figsize=(2 * WIDTH, LINE * len(known) * 0.75 + 1.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, row in enumerate(known):
        colour = HOLDS if row["alarm"] else NOT
        for ax, name in ((left, "auc"), (right, "hits")):
            ax.plot([row[f"{name}_low"], row[f"{name}_high"]], [place, place], color=colour, linewidth=2)
            ax.plot([row[name]], [place], "o" if row["alarm"] else "x", color=colour)
    left.axvline(0.5, color="0.4", linewidth=0.8)
    left.set_title("AUC, held-out conditions", loc="left")
    right.set_title("share of collapses foreseen", loc="left")
    left.set_yticks(range(len(known)), [row["quantity"] for row in known])
    left.set(ylim=(len(known) - 0.4, -0.6), xlim=(-0.02, 1.02))
    right.set(xlim=(-0.02, 1.02))
    return figure


def samples(rows: Rows) -> Figure:
    """The lead of importance sampling on either side of its border, with its interval."""
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    ax = figure.subplots()
    for place, row in enumerate(rows):
        ax.plot([place, place], [row["lead_low"], row["lead_high"]], color="0.1", linewidth=2)
        ax.plot([place], [row["lead"]], "o", color=HOLDS if row["holds"] else NOT)
    ax.axhline(0, color="0.4", linewidth=0.8)
    ax.set_title("lead of minirl over minirl-no-is, final J", loc="left")
    ax.set_xticks(range(len(rows)), [f"T = {row['T']}" for row in rows])
    ax.set(xlim=(-0.5, len(rows) - 0.5))
    return figure


FIGURES: Mapping[str, Callable[[Rows], Figure]] = {
    "regimes": regimes,
    "samples": samples,
    "causes": causes,
    "warnings": warnings,
    "map": advice,
    "frontier": frontier,
    "bounds": bounds,
    "replay": replay,
}
