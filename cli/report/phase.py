"""Phase diagrams: an outcome over the axes of a grid.

One axis makes a line, two a map, more a map for every combination of the rest. An axis with one value takes no room.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import offset_copy

from firstorder.core.settings.grid import points

from .curves import estimate
from .figures import COLOURS, COLUMNS, HEAVY, arranged, images, short
from .runs import Array
from .sweeps import CellRun, Outcome, Sweep, outcome

MAP = "viridis"  # rises in lightness, so it reads in grey and with any colour vision
WRITTEN = 16  # columns of a map up to which its numbers are written into it
LETTER = 0.075  # inches of a letter of a label
SLANT: Any = {"rotation": 30, "rotation_mode": "anchor", "ha": "right"}
WIDTH = 6.0  # inches of a figure of one axis
CROWDED = 0.3  # of an even distance, below which values that stand to scale are too close to be told apart


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An outcome of a cell: every member's, their interquartile mean and its interval (NaN for one member)."""

    cell: CellRun
    each: Array
    value: float
    low: float
    high: float


def estimates(sweep: Sweep, quantity: Outcome) -> list[Estimate]:
    """An outcome of every cell; NaN where there is none."""
    estimated = []
    for cell in sweep.cells:
        each = outcome(cell, quantity)
        if each is None:
            each = np.empty(0)
            value, low, high = math.nan, math.nan, math.nan
        else:
            value, low, high = (float(part[0]) for part in estimate(each[None]))
        estimated.append(Estimate(cell=cell, each=each, value=value, low=low, high=high))
    return estimated


def varied(sweep: Sweep) -> list[str]:
    """The axes with several values, in their order; the first one if there are none."""
    return [key for key, values in sweep.axes.items() if len(values) > 1] or list(sweep.axes)[:1]


def diagram(sweep: Sweep, quantity: Outcome, cells: Sequence[Estimate]) -> dict[str, bytes]:
    """The phase diagram of an outcome as PNG and SVG, by suffix."""
    return images(lambda: figure(sweep, quantity, cells))


def figure(sweep: Sweep, quantity: Outcome, cells: Sequence[Estimate]) -> Figure:
    """The phase diagram of an outcome."""
    keys = varied(sweep)
    return _line(sweep, keys[0], quantity, cells) if len(keys) == 1 else _maps(sweep, quantity, cells)


def _line(sweep: Sweep, key: str, quantity: Outcome, cells: Sequence[Estimate]) -> Figure:
    """Values with their intervals and, beside them, the members; joined where the axis is of numbers."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    ax, values = figure.subplots(), sweep.axes[key]
    numbers = all(_is_number(value) for value in values)
    x = _places(values) if numbers else np.arange(len(values), dtype=np.float64)
    y, low, high = (np.array([getattr(each, name) for each in cells]) for name in ("value", "low", "high"))
    if numbers:
        order = np.argsort(x)
        ax.plot(x[order], y[order], color=COLOURS[0])
    known = np.isfinite(low)
    bars = np.stack([y - low, high - y])[:, known]
    ax.errorbar(x[known], y[known], bars, fmt="none", ecolor=COLOURS[0], capsize=4)
    ax.plot(x, y, "o", color=COLOURS[0])
    beside = offset_copy(ax.transData, figure, x=-6, units="points")
    for place, each in zip(x, cells, strict=True):
        if len(each.each) > 1:
            ax.plot([place] * len(each.each), each.each, ".", color="0.6", transform=beside)
        if why := _absent(each):
            ax.annotate(why, (place, 0.03), xycoords=("data", "axes fraction"), rotation=90, ha="center", color="0.4")
    labels = [short(_text(value)) for value in values]
    shown = slice(None, None, -(-len(labels) // WRITTEN))  # every label, or as many as have room
    slant = max(map(len, labels)) * LETTER * len(labels[shown]) > WIDTH - 1.0
    ax.set_xticks(x[shown], labels[shown], **(SLANT if slant else {}))
    ax.set(xlim=(-0.06 * len(x), x.max() + 0.06 * len(x)), xlabel=key, ylabel=quantity.unit)
    ax.set_title(quantity.title, loc="left")
    return figure


def _places(values: Sequence[float]) -> Array:
    """Where numbers stand from 0 to n - 1: to scale or to their logarithms, whichever is more even, else in order."""
    if len(values) == 1:
        return np.zeros(1)
    numbers = np.asarray(values, dtype=np.float64)
    scales = [numbers, np.log(numbers)] if numbers.min() > 0 else [numbers]
    spread = [(x - x.min()) / (x.max() - x.min()) * (len(x) - 1) for x in scales]
    gaps = [float(np.diff(np.sort(x)).min()) for x in spread]
    best = int(np.argmax(gaps))
    return spread[best] if gaps[best] > CROWDED else np.argsort(np.argsort(numbers)).astype(np.float64)


def _maps(sweep: Sweep, quantity: Outcome, cells: Sequence[Estimate]) -> Figure:
    """The first varied axis along x, the second along y, a map for each combination of the rest; one scale."""
    across, up, *rest = varied(sweep)
    panels = points({key: sweep.axes[key] for key in rest})
    columns, rows = _arranged([len(sweep.axes[key]) for key in rest])
    scale = _scale(quantity, [each.value for each in cells])
    slant = _widest(sweep.axes[across]) * LETTER > _tiles(sweep, across, cells)
    figure = Figure(figsize=_size(sweep, cells, columns, rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for number, (ax, panel) in enumerate(zip(axes, panels, strict=False)):
        for each in cells:
            if all(each.cell.point[key] == value for key, value in panel.items()):
                x, y = (sweep.axes[key].index(each.cell.point[key]) for key in (across, up))
                _tile(ax, x, y, each, scale, len(sweep.axes[across]) <= WRITTEN)
        _dress(ax, sweep, across, up, slant)
        lowest, leftmost = number + columns >= len(panels), number % columns == 0
        ax.set(xlabel=across if lowest else "", ylabel=up if leftmost else "")
        ax.tick_params(length=0, labelbottom=lowest, labelleft=leftmost)
        ax.set_title("\n".join(short(f"{key} = {_text(value)}") for key, value in panel.items()), loc="left")
    for ax in axes[len(panels) :]:
        ax.remove()
    figure.suptitle(quantity.title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(scale, MAP), ax=axes[: len(panels)], format=plain)
    bar.set_label(quantity.unit)
    bar.outline.set_visible(False)
    return figure


def _size(sweep: Sweep, cells: Sequence[Estimate], columns: int, rows: int) -> tuple[float, float]:
    """Inches of a figure of maps in which every number has room."""
    across, up, *rest = varied(sweep)
    below, beside = (_widest(sweep.axes[key]) for key in (across, up))
    width = _tiles(sweep, across, cells) * len(sweep.axes[across]) + 0.2
    height = max(1.0, 0.42 * len(sweep.axes[up])) + 0.17 * len(rest) + 0.1
    return LETTER * beside + columns * width + 1.4, rows * height + 0.04 * below + 0.7


def _tiles(sweep: Sweep, across: str, cells: Sequence[Estimate]) -> float:
    """Inches of a cell of a map, from left to right."""
    count = len(sweep.axes[across])
    room = LETTER * max(len(_label(each)) for each in cells) + 0.1 if count <= WRITTEN else 0.3
    return max(2.4 / count, room)


def _dress(ax: Axes, sweep: Sweep, across: str, up: str, slant: bool) -> None:
    """Ticks with the values of both axes, and no frame."""
    below, beside = ([short(_text(value)) for value in sweep.axes[key]] for key in (across, up))
    ax.set(xlim=(-0.5, len(below) - 0.5), ylim=(-0.5, len(beside) - 0.5))
    ax.set_xticks(range(len(below)), below, **(SLANT if slant else {}))
    ax.set_yticks(range(len(beside)), beside)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _tile(ax: Axes, x: int, y: int, each: Estimate, scale: Normalize, written: bool) -> None:
    """A cell of a map: its colour, or hatching if it has no number; and the number, or why there is none."""
    why, colour = _absent(each), matplotlib.colormaps[MAP](scale(each.value))
    look: dict[str, Any] = {"facecolor": "1", "edgecolor": "0.7", "hatch": "////"} if why else {"facecolor": colour}
    ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, linewidth=0 if why else 1.5, **({"edgecolor": "1"} | look)))
    if written:
        dark = not why and np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.5
        text = ax.text(
            x, y, why or f"{each.value:.3g}", ha="center", va="center", fontsize=8, color="1" if dark else "0"
        )
        if why:
            text.set_bbox({"facecolor": "1", "edgecolor": "none", "pad": 1})


def _label(each: Estimate) -> str:
    return _absent(each) or f"{each.value:.3g}"


def _absent(each: Estimate) -> str:
    """Why a cell has no number; nothing if it has one."""
    if not math.isnan(each.value):
        return ""
    if each.cell.stopped is not None:
        return "stopped"
    return "to do" if each.cell.run is None else "none"


def _arranged(rest: Sequence[int]) -> tuple[int, int]:
    """Columns and rows of maps; two short axes of maps make a table."""
    if len(rest) == 2 and rest[1] <= COLUMNS:
        return rest[1], rest[0]
    return arranged(math.prod(rest))


def _scale(quantity: Outcome, values: Sequence[float]) -> Normalize:
    """The scale of colours: linear, or logarithmic beyond the usual value where a few would hide the rest."""
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return Normalize(0.0, 1.0)
    usual = float(np.median(np.abs(known)))
    if quantity.heavy and usual > 0 and np.abs(known).max() > HEAVY * usual:
        return SymLogNorm(usual, vmin=known.min(), vmax=known.max())
    return Normalize(known.min(), known.max())


def _widest(values: Sequence[Any]) -> int:
    """Letters of the longest label."""
    return max(len(short(_text(value))) for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> str:
    """A value as TOML would have it, without quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)
