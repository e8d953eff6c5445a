"""Golden vectors for other programs: what they are, and answers held against them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .results import Printed, Result, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table
    from rich.text import Text

    from firstorder.core.conformance.check import Compared, Difference

SCHEMA = "firstorder.conformance-check/1"
SUBJECTS = {"methods": "method", "terms": "term", "metrics": "metric", "advantages": "baseline"}
OUTPUTS = ("value", "weight", "gradient", "loss", "receipts", "advantage", "metric")


@dataclass(frozen=True, kw_only=True, repr=False)
class VectorsResult(Printed):
    """The golden vectors.

    Args:
        document: all of them.
    """

    document: Mapping[str, Any]

    @property
    def version(self) -> int:
        """Of the numbers."""
        return int(self.document["version"])

    @property
    def cases(self) -> dict[str, str]:
        """What each batch is about, by name."""
        return {name: case["about"] for name, case in self.document["cases"].items()}

    @property
    def methods(self) -> dict[str, list[str]]:
        """By name, the shipped recipes that make the same weights."""
        return {name: method["recipes"] for name, method in self.document["methods"].items()}

    @property
    def terms(self) -> dict[str, dict[str, float]]:
        """By name, the shipped recipes that have a term beside their weights, with its coefficient."""
        return {name: dict(term["recipes"]) for name, term in self.document["terms"].items()}

    def blocks(self) -> Iterator[Table | Text]:
        """The cases, and how much there is."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in ("case", "about"):
            table.add_column(column, overflow="fold")
        for name, about in self.cases.items():
            table.add_row(name, about)
        yield table
        counts = f"{len(self.methods)} methods, {len(self.terms)} terms, {len(self.cases)} cases"
        yield Text(f"{counts}, version {self.version}; --json FILE writes them")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ConformanceResult(Result):
    """Answers beside the golden vectors.

    Args:
        framework: whose answers.
        compared: every output that was answered.
        unanswered: how many were not.
        seconds: by the clock.
    """

    framework: str
    compared: Sequence[Compared]
    unanswered: int
    seconds: float

    @property
    def largest(self) -> Difference | None:
        """The largest difference, in tolerances; None where all agree."""
        from firstorder.core.conformance.check import furthest

        return furthest(self.compared)

    @property
    def passed(self) -> bool:
        """Whether every number that was answered agrees."""
        return self.largest is None

    def blocks(self) -> Iterator[Table | Text]:
        """How many cases agree, by method, term, metric and rule; the largest difference."""
        from rich.text import Text

        for section in SUBJECTS:
            rows = [row for row in self.compared if row.path[0] == section]
            if rows:
                yield _agreement(section, rows)
        numbers = sum(row.numbers for row in self.compared)
        answered = f"{len(self.compared)} outputs of {self.framework}, {numbers:,} numbers"
        yield Text(f"{answered}; {self.unanswered} outputs are not answered; {self.seconds:.1f} s")
        if self.largest is None:
            yield Text("all agree", style="green")
        else:
            yield Text(f"largest difference, {self.largest.excess:.3g} tolerances: {self.largest}", style="bold red")

    def records(self) -> list[dict[str, Any]]:
        """A row for each output that was answered."""
        return [dict(row) for row in self.document["rows"]]

    def plot(self) -> Figure:
        """The share of outputs that agree, of every method, term, metric and rule."""
        require_matplotlib()
        from firstorder.cli.report.bars import Bar, bars

        shares = {
            subject: sum(row.worst is None for row in rows) / len(rows)
            for subject, rows in by_subject(self.compared).items()
        }
        return bars({"share of outputs that agree": [Bar(label=name, value=share) for name, share in shares.items()]})


def conformance_vectors() -> VectorsResult:
    """The golden vectors: small batches, and what every method, term, metric and baseline makes of them."""
    from firstorder.core.conformance.shipped import shipped

    return VectorsResult(document=shipped())


def conformance(answers: str | os.PathLike[str]) -> ConformanceResult:
    """Hold another program's answers against the golden vectors, each at its tolerance.

    Args:
        answers: a file with the numbers of that program under the names of the vectors; it may leave out any.

    Raises:
        DataError: the file cannot be read, or has a name, a shape or a value that the vectors do not.
    """
    from firstorder import __version__
    from firstorder.core.conformance.answer import expected_leaves, load
    from firstorder.core.conformance.check import compare
    from firstorder.core.conformance.shipped import shipped

    started = time.perf_counter()
    vectors = shipped()
    given = load(Path(answers), vectors)
    found = compare(given, vectors)
    total = sum(1 for _ in expected_leaves(vectors["expected"]))
    seconds = time.perf_counter() - started
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "seconds": seconds,
        "vectors": vectors["version"],
        "framework": given.framework,
        "agree": all(row.worst is None for row in found),
        "answered": len(found),
        "outputs": total,
        "rows": [_row(row) for row in found],
    }
    return ConformanceResult(
        document=document,
        framework=given.framework,
        compared=found,
        unanswered=total - len(found),
        seconds=seconds,
    )


def _agreement(section: str, compared: Sequence[Compared]) -> Table:
    """How many cases of each method, term, metric or rule agree, by output."""
    from rich.table import Table

    columns = [one for one in OUTPUTS if any(row.output == one for row in compared)]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(SUBJECTS[section], no_wrap=True)
    for column in columns:
        table.add_column("agree" if len(columns) == 1 else column)
    table.add_column("differ on", overflow="fold")
    for subject, rows in by_subject(compared).items():
        cells = [_share([row for row in rows if row.output == one]) for one in columns]
        table.add_row(subject, *cells, ", ".join(dict.fromkeys(row.case for row in rows if row.worst)))
    return table


def by_subject(compared: Sequence[Compared]) -> dict[str, list[Compared]]:
    """Outputs by the method, term, metric or rule that they are of, in their order."""
    found: dict[str, list[Compared]] = {}
    for row in compared:
        found.setdefault(row.subject, []).append(row)
    return found


def _share(rows: Sequence[Compared]) -> str:
    """On how many cases all of some outputs agree; nothing where there is none."""
    cases, differ = {row.case for row in rows}, {row.case for row in rows if row.worst}
    return f"{len(cases - differ)}/{len(cases)}" if rows else ""


def _row(row: Compared) -> dict[str, Any]:
    worst = row.worst
    named = {
        "section": row.path[0],
        "name": row.subject,
        "case": row.case,
        "output": row.output,
        "agrees": worst is None,
    }
    if worst is None:
        return named | {"excess": None, "place": None, "got": None, "expected": None}
    return named | {"excess": worst.excess, "place": list(worst.place), "got": worst.got, "expected": worst.expected}
