"""The tables of an audit as figures and files: an axes for each estimated column, its interval as a band or bars."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from firstorder.core.audit.table import Cell, Column, Estimate, Table
from firstorder.core.errors import DataError

from .figures import COLOURS, MARKED, arranged, images, short
from .figures import drawn as shown
from .kit import visible

WIDE = 100  # times the first place, from which on an axis of numbers is logarithmic
LETTERS = 28  # of all labels of an axis, above which they slant
OVERVIEW = {"by-position": "abs_log_ratio", "by-decile": "abs_log_ratio", "routes-by-layer": "flip_rate"}
PURE = "1"  # the unit of a pure number
FEW = 12  # categories that have room for their names; of more, every so many is named


def csv_of(table: Table) -> bytes:
    """All digits of a table; an estimate with its interval in the columns `KEY`, `KEY_low` and `KEY_high`."""
    wide = estimated(table)
    heads = [name for column in table.columns for name in _heads(column, column in wide)]
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(heads)
    for row in table.rows:
        writer.writerow([part for c in table.columns for part in _parts(row.get(c.key), c in wide)])
    return file.getvalue().encode("utf-8", "backslashreplace")


def estimated(table: Table) -> list[Column]:
    """The columns that hold estimates."""
    return [c for c in table.columns if any(isinstance(row.get(c.key), Estimate) for row in table.rows)]


def plotted(table: Table) -> list[Column]:
    """The columns that are drawn, if they vary: estimates; where there are none, other numbers but counts."""
    numbers = [c for c in table.columns[1:] if any(isinstance(row.get(c.key), float) for row in table.rows)]
    return [c for c in estimated(table) or numbers if _varies([row.get(c.key) for row in table.rows])]


def is_drawn(table: Table) -> bool:
    """Whether a table is of something along something, as its name or its first column says, with more than one row."""
    along_it = "by" in table.name.split("-") or along(table).key == "step"
    return along_it and len(table.rows) > 1 and bool(plotted(table))


def along(table: Table) -> Column:
    """What its estimates are along: the first column."""
    return table.columns[0]


def drawn(table: Table) -> dict[str, bytes]:
    """The figure of a table as PNG and SVG, by suffix."""
    return images(lambda: _figure(table))


def overview(tables: Sequence[Table]) -> Figure:
    """Where the engines differ: mean |D| by position and by probability, flips by layer, as far as the tables tell.

    Raises:
        DataError: no table tells.
    """
    by_name = {table.name: table for table in tables if is_drawn(table)}
    panels = [
        (table, next((c for c in plotted(table) if c.key == key), plotted(table)[0]))
        for name, key in OVERVIEW.items()
        if (table := by_name.get(name)) is not None
    ]
    if not panels:
        raise DataError("the audit has no numbers by position, probability or layer; give a dump with both log-probs")
    return shown(lambda: _panels(panels))


def _figure(table: Table) -> Figure:
    return _panels([(table, column) for column in plotted(table)])


def _panels(panels: Sequence[tuple[Table, Column]]) -> Figure:
    columns, rows = arranged(len(panels))
    figure = Figure(figsize=(max(5.0, 3.6 * columns), 2.6 * rows + 0.1), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for place, (ax, (table, column)) in enumerate(zip(axes, panels, strict=False)):
        _draw(ax, table, column, COLOURS[place % len(COLOURS)])
    for ax in axes[len(panels) :]:
        ax.remove()
    return figure


def _draw(ax: Axes, table: Table, column: Column, colour: str) -> None:
    """Numbers along the axis with a band, or categories with bars."""
    known = [(row.get(along(table).key), row.get(column.key)) for row in table.rows]
    x, cells = zip(*(pair for pair in known if _is_finite(pair[1])), strict=True)
    values, low, high = _ends(cells)
    if (numbers := _places(x)) is not None:
        order = np.argsort(numbers)
        numbers, values, low, high = numbers[order], values[order], low[order], high[order]
        ax.plot(numbers, values, color=colour, marker="o", markevery=max(1, len(numbers) // (2 * MARKED)))
        ax.fill_between(numbers, low, high, color=colour, alpha=0.18, linewidth=0)
        _number(ax, numbers)
    else:
        places = np.arange(len(x))
        ax.errorbar(places, values, np.stack([values - low, high - values]), fmt="o", color=colour, capsize=3)
        _name(ax, [short(visible(_plain(place))) for place in x])
    if values.min(initial=0.0) < 0 < values.max(initial=0.0):
        ax.axhline(0, color="0.4", linewidth=0.8)
    ax.set_title(visible(column.title), loc="left")
    ax.set(xlabel=visible(with_unit(along(table))), ylabel="" if column.unit == PURE else visible(column.unit))


def _number(ax: Axes, places: NDArray[np.float64]) -> None:
    """Whole numbers stay whole, and decades get equal room."""
    if places[0] > 0 and places[-1] >= WIDE * places[0]:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif (places == places.round()).all():
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _name(ax: Axes, names: Sequence[str]) -> None:
    every = max(1, -(-len(names) // FEW))
    slant: Any = {"rotation": 30, "rotation_mode": "anchor", "ha": "right"}
    shown = names[::every]
    ax.set_xticks(range(0, len(names), every), shown, **(slant if sum(map(len, shown)) > LETTERS else {}))


def _varies(cells: Sequence[Cell]) -> bool:
    return len({_value(cell) for cell in cells if _is_finite(cell)}) > 1


def _is_finite(cell: Cell) -> bool:
    value = _value(cell)
    return isinstance(value, (int, float)) and math.isfinite(value)


def _value(cell: Cell) -> Cell:
    return cell.value if isinstance(cell, Estimate) else cell


def _places(cells: Sequence[Cell]) -> NDArray[np.float64] | None:
    """The places along an axis of numbers; None where one is no number."""
    try:
        places = np.array([float(str(cell)) for cell in cells])
    except ValueError:
        return None
    return places if np.isfinite(places).all() else None


def _ends(cells: Sequence[Cell]) -> tuple[Any, Any, Any]:
    """Values and the ends of their intervals, the value itself where there is no interval."""
    found = [cell if isinstance(cell, Estimate) else Estimate(value=float(cell or 0)) for cell in cells]
    values = np.array([each.value for each in found], dtype=np.float64)
    low = np.array([each.value if each.low is None else each.low for each in found], dtype=np.float64)
    high = np.array([each.value if each.high is None else each.high for each in found], dtype=np.float64)
    return values, np.minimum(low, values), np.maximum(high, values)


def with_unit(column: Column) -> str:
    """The head of a column."""
    return f"{column.title} [{column.unit}]" if column.unit and column.unit != PURE else column.title


def _plain(value: Cell) -> str:
    return "" if value is None else str(value)


def _heads(column: Column, wide: bool) -> list[str]:
    return [column.key, f"{column.key}_low", f"{column.key}_high"] if wide else [column.key]


def _parts(cell: Cell, wide: bool) -> list[Any]:
    if isinstance(cell, Estimate):
        return [cell.value, cell.low, cell.high]
    return [cell, None, None] if wide else [cell]
