"""Rows of a table: rounded for people on the page, with all digits in the CSV beside it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Number:
    """A value with its interval, NaN where there is none.

    Args:
        value: the value.
        low: lower end of its interval.
        high: upper end.
        step: the global steps done where it was measured.
        late: whether the run went on from there without measuring it again.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    step: int | None = None
    late: bool = False

    def __str__(self) -> str:
        if math.isnan(self.value):
            return ""
        text = f"{self.value:.4g}" if math.isnan(self.low) else f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"
        return f"{text} at step {self.step}" if self.late else text


Cell = str | float | Number
Row = Mapping[str, Cell]


def shown(rows: Sequence[Row]) -> list[dict[str, str]]:
    """As a page has them."""
    return [{key: f"{x:.4g}" if isinstance(x, float) else str(x) for key, x in row.items()} for row in rows]


def csv_of(rows: Sequence[Row]) -> bytes:
    """As a file has them: where one row has a `Number`, all have its ends and its step in columns of their own."""
    wide = {key for row in rows for key, cell in row.items() if isinstance(cell, Number)}
    heads = [head for key in rows[0] for head in ([key, *(f"{key} {end}" for end in ENDS)] if key in wide else [key])]
    return written(heads, ([part for key, cell in row.items() for part in _parts(cell, key in wide)] for row in rows))


def written(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> bytes:
    """A CSV file."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()


def digits(value: float) -> str:
    """All digits; nothing for NaN."""
    return "" if math.isnan(value) else repr(float(value))


ENDS = ("low", "high", "step")


def _parts(cell: Cell, wide: bool) -> list[str]:
    if isinstance(cell, Number):
        step = "" if cell.step is None else str(cell.step)
        return [digits(cell.value), digits(cell.low), digits(cell.high), step]
    text = digits(cell) if isinstance(cell, float) else cell
    return [text, "", "", ""] if wide else [text]
