"""Tables of an audit: rows of cells with units, estimates with their intervals."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its 95 % interval, clustered by response; None where there is none (one response)."""

    value: float
    low: float | None = None
    high: float | None = None


Cell = str | int | float | Estimate | None


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: the key in JSON, the head for people, the unit and the formula."""

    key: str
    title: str
    unit: str = ""
    formula: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Args:
        name: in JSON and as a file name: `by-position`.
        title: for people.
        columns: in order.
        rows: cells by the key of their column.
        note: what the numbers are, one sentence, or nothing.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[dict[str, Cell], ...]
    note: str = ""
