"""Figures that survive a grey printer and colour-blind eyes: Okabe-Ito colours, line styles and markers."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .catalogue import Panel
from .curves import Curve

# M. Okabe and K. Ito, "Color Universal Design", without yellow, which paper swallows
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)), "-")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MARKED = 8  # markers on a long line
COLUMNS = 3
HEAVY = 30  # times the median
LABEL = 48  # characters of a label in a figure

METADATA: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None}}  # nothing that changes from day to day
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.useoffset": False,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "savefig.dpi": 160,
    "svg.hashsalt": "firstorder",
    "text.parse_math": False,
}


@contextmanager
def house_style() -> Iterator[None]:
    """The look of every figure, whatever style the user has set elsewhere."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        warnings.filterwarnings("ignore", message="Glyph")  # a folder's name may be in any script
        yield


def images(make: Callable[[], Figure], suffixes: Iterable[str] = METADATA) -> dict[str, bytes]:
    """A figure, made in the house style, as PNG and SVG, by suffix; the same figure gives the same bytes."""
    with house_style():
        figure = make()
        if figure.get_layout_engine() is not None:  # laid out once, not for each suffix
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        return {suffix: _encoded(figure, suffix) for suffix in suffixes}


def drawn(make: Callable[[], Figure]) -> Figure:
    """A figure, made in the house style, that a notebook shows without a graphical back end."""
    with house_style():
        figure = make()
    figure.__class__ = Shown
    return figure


class Shown(Figure):
    """A figure that a notebook shows as PNG, in the house style."""

    def _repr_png_(self) -> bytes:
        with house_style():
            return _encoded(self, "png")


def _encoded(figure: Figure, suffix: str) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=suffix, metadata=METADATA[suffix])
    return file.getvalue()


def line(ax: Axes, curves: Sequence[Curve], place: int, of: int) -> None:
    """The curve in the look of its place, if there is one: the mean of its window, that one's interval as a band, and
    faint behind it the values of the steps alone."""
    look = _look(place)
    for curve in curves:
        x, points = curve.steps_done, len(curve.steps)
        every = max(1, points // MARKED)
        start = 0 if every == 1 else place * every // of
        if curve.window > 1:
            ax.plot(x, curve.value, color=look["color"], linewidth=0.6, alpha=0.35, gid=f"each step {curve.panel.key}")
        ax.plot(x, curve.mean, markevery=(start, every), **look)
        if np.isfinite(curve.mean_low).any():
            ax.fill_between(x, curve.mean_low, curve.mean_high, color=look["color"], alpha=0.12, linewidth=0)
            for edge in (curve.mean_low, curve.mean_high):
                ax.plot(x, edge, color=look["color"], linestyle=look["linestyle"], linewidth=0.5, alpha=0.5)


def _look(place: int) -> dict[str, Any]:
    """Colour, dashes and marker; all three repeat only after 7, the pair of colour and dashes after 49."""
    n = len(COLOURS)
    return {
        "color": COLOURS[place % n],
        "linestyle": DASHES[(place + place // n) % n],
        "marker": MARKERS[(place + place // n) % n],
    }


def dress(ax: Axes, title: str) -> None:
    """Its title, and steps along x."""
    ax.set_title(title, loc="left")
    ax.set_xlabel("global steps done")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    ax.tick_params(labelleft=True, labelbottom=True)


def scale(ax: Axes, unit: str, panels: Sequence[Panel], curves: Sequence[Curve]) -> None:
    """Label the values and choose their axis: a share starts at 0, a heavy tail is logarithmic, as its label says.

    Args:
        ax: the axes.
        unit: what they show.
        panels: every quantity that is read on the same axis.
        curves: of the whole figure.
    """
    ax.set_ylabel(unit)
    shown = [np.concatenate([c.value, c.mean_low, c.mean_high]) for c in curves if c.panel in panels]
    sizes = np.abs(np.concatenate(shown))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    if unit.startswith("share"):
        top = 1.05 * float(sizes.max(initial=0.0)) or 1.0
        ax.set_ylim(-0.03 * top, top)
    elif panels[0].heavy and len(sizes) and sizes.max() > HEAVY * np.median(sizes):
        usual = 10.0 ** math.ceil(math.log10(float(np.median(sizes))))
        ax.set_yscale("symlog", linthresh=usual)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_ylabel(f"{unit} (log beyond {usual:g})")


def name_lines(figure: Figure, named: list[str], across: int) -> None:
    """A legend below the figure, in the looks of the lines."""
    lines = [Line2D([], [], **_look(place)) for place in range(len(named))]
    figure.legend(lines, named, loc="outside lower center", ncols=across, handlelength=4)


def arranged(cells: int) -> tuple[int, int]:
    """Columns and rows; four cells make a square."""
    columns = 2 if cells == 4 else min(cells, COLUMNS)
    return columns, math.ceil(cells / columns)


def across(named: list[str], width: float) -> int:
    """Columns of a legend that fits the width, in inches."""
    return max(1, min(len(named), int(width / (0.075 * max(map(len, named)) + 0.8))))


def short(label: str, letters: int = LABEL) -> str:
    """A label that fits; one that starts with an underscore would be left out of the legend."""
    text = label if len(label) <= letters else f"{label[: letters // 2]}…{label[-letters // 2 + 1 :]}"
    return f" {text}" if text.startswith("_") else text
