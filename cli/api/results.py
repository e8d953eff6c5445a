"""What the use cases return: values that print as their command does, with a table, a figure and a JSON document."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

WIDTH = 120  # columns of a result where there is no terminal
WHOLE = 1000  # columns that hold every line of a listing


class Printed(ABC):
    """What prints as its command does, in a terminal and in a notebook.

    A subclass that is a dataclass says `repr=False`, so that it keeps this one.
    """

    @abstractmethod
    def blocks(self) -> Iterator[Table | Text]:
        """What is printed, from top to bottom; a line with `no_wrap` stays one in a narrow terminal."""

    def print(self, console: Console | None = None) -> None:
        """Print what the command prints."""
        from rich.console import Console
        from rich.text import Text

        console = console or Console()
        for block in self.blocks():
            if isinstance(block, Text):
                console.print(block, highlight=False, soft_wrap=block.no_wrap or False)
            else:
                console.print(block)

    def __str__(self) -> str:
        from io import StringIO
        from shutil import get_terminal_size

        from rich.console import Console

        text = StringIO()
        width = get_terminal_size((WIDTH, 24)).columns
        self.print(Console(file=text, width=width, color_system=None, force_jupyter=False, force_terminal=True))
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "\n".join(_table(block) if hasattr(block, "columns") else _paragraph(block) for block in self.blocks())


class Listing(Printed):
    """What is listed, a line each: cut where a terminal ends, and whole in a file or a pipe."""

    def print(self, console: Console | None = None) -> None:
        """Print what the command prints."""
        import os

        from rich.console import Console

        console = console or Console()
        if not console.is_terminal and not console.is_jupyter and "COLUMNS" not in os.environ:
            console = Console(file=console.file, width=WHOLE)
        super().print(console)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Documented(Printed):
    """What is written as JSON too.

    Args:
        document: what the command writes with `--json`, before NaN and infinities are replaced.
    """

    document: dict[str, Any] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document that the command writes: NaN and infinities are None, tuples are lists."""
        from firstorder.core.runs.files import to_json

        plain: dict[str, Any] = json.loads(to_json(self.document))
        return plain


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Result(Documented):
    """The result of a use case.

    A subclass is a dataclass with the same arguments; it names its numbers as fields, and says in `blocks`, `records`
    and `plot` how they are shown.
    """

    @abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """The rows of `to_pandas`."""

    @abstractmethod
    def plot(self) -> Figure:
        """A figure, in the look of the reports.

        Raises:
            ConfigError: matplotlib is not installed.
        """

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a table of pandas.

        Raises:
            ConfigError: pandas is not installed.
        """
        return require("pandas", "to_pandas needs", "notebook").DataFrame(self.records())


def listed(columns: Iterable[tuple[str, int | None]], rows: Iterable[Iterable[str]], title: str | None = None) -> Table:
    """A table of one line a row, whose last column is cut with … where the line ends.

    Args:
        columns: their heads, with the most that each may take.
        rows: texts, in which [clip] is no style.
        title: of the table.
    """
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left", title_style="bold")
    *fixed, last = columns
    for head, most in fixed:
        shown.add_column(head, no_wrap=True, overflow="ellipsis", max_width=most)
    shown.add_column(last[0], overflow="ellipsis")  # the only one that may be narrowed; its cells do not wrap either
    for row in rows:
        shown.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in row))
    return shown


def require(module: str, what: str, extra: str) -> Any:
    """A library that does not come with the package.

    Raises:
        ConfigError: it is not installed, with the extra that brings it.
    """
    from firstorder.core.errors import ConfigError

    try:
        return import_module(module)
    except ImportError:
        raise ConfigError(f"{what} {module}; pip install 'firstorder[{extra}]'") from None


def require_matplotlib() -> None:
    """Refuse to draw without matplotlib; raises as `require` does."""
    require("matplotlib", "plot draws with", "report")


def _table(block: Any) -> str:
    """A table of rich as HTML."""
    caption = f"<caption>{_words(block.title)}</caption>" if block.title else ""
    columns = [column for column in block.columns if column.header]
    heads = "".join(f'<th style="text-align: {column.justify}">{_words(column.header)}</th>' for column in columns)
    rows = zip(*(list(column.cells) for column in columns), strict=True)
    justify = [column.justify for column in columns]
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="text-align: {side}">{_words(cell)}</td>' for side, cell in zip(justify, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _paragraph(block: Any) -> str:
    return f"<p>{escape(block.plain)}</p>"


def _words(cell: Any) -> str:
    """A cell without its markup."""
    from rich.text import Text

    return escape(cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain)
