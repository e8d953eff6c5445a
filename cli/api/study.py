"""Open questions, answered by runs with a rule that was fixed beforehand."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .results import Printed, Result, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table
    from rich.text import Text

    from firstorder.sim.studies import Plan, Study

SCHEMA = "firstorder.study/1"


@dataclass(frozen=True, repr=False)
class StudiesResult(Printed):
    """The studies there are, by name."""

    questions: Mapping[str, str]

    def __iter__(self) -> Iterator[str]:
        return iter(self.questions)

    def __len__(self) -> int:
        return len(self.questions)

    def blocks(self) -> Iterator[Table | Text]:
        """A row for each study."""
        from rich.table import Table

        shown = Table(box=None, header_style="bold")
        for column in ("study", "question"):
            shown.add_column(column, overflow="fold")
        for name, question in self.questions.items():
            shown.add_row(name, question)
        yield shown


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class StudyResult(Result):
    """An answer.

    Args:
        study: the question and the rule.
        headline: the answer in a sentence.
        rows: one a line of its table and a point of its figure.
        measured: all else that was measured.
        seeds: of the policies.
        seconds: by the clock, without runs that were found.
    """

    study: Study
    headline: str
    rows: Sequence[Mapping[str, Any]]
    measured: Mapping[str, Any]
    seeds: Sequence[int]
    seconds: float

    def blocks(self) -> Iterator[Table | Text]:
        """The question, a line for each row, the answer."""
        from rich.table import Table
        from rich.text import Text

        yield Text(self.study.question, style="bold")
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in self.rows[0] if self.rows else ():
            table.add_column(column.replace("_", " "), overflow="fold")
        for row in self.rows:
            table.add_row(*map(_shown, row.values()))
        yield table
        yield Text(f"{self.headline}; seeds {self.seeds[0]} to {self.seeds[-1]}, {self.seconds:.1f} s", style="bold")
        if self.document["quick"]:
            yield Text("a first look; without --quick it answers by its rule", style="yellow")

    def records(self) -> list[dict[str, Any]]:
        """The rows."""
        return [dict(row) for row in self.rows]

    def plot(self) -> Figure:
        """The rows as a figure."""
        require_matplotlib()
        from firstorder.cli.report import studies as figures

        return figures.study(self.study.id, self.records())


def studies() -> StudiesResult:
    """The open questions that a study answers, by its name."""
    from firstorder.sim.studies import STUDIES

    return StudiesResult({each.id: each.question for each in STUDIES})


def study(name: str, *, quick: bool = False, out: str | os.PathLike[str] | None = None) -> StudyResult:
    """Answer an open question by training what it takes, with a rule that was fixed beforehand.

    Args:
        name: of a study.
        quick: a first look, on fewer seeds and conditions.
        out: a folder that keeps the runs; another call goes on there.

    Raises:
        ConfigError: an unknown study, or a folder of other runs.
    """
    from firstorder import __version__
    from firstorder.sim.studies import plan

    chosen = _chosen(name)
    started = time.perf_counter()
    with ExitStack() as stack:
        budget = plan(_folder(stack, out), first=chosen.first, quick=quick)
        _reserve(stack, chosen, budget)
        answer = chosen.answer(budget)
    seconds = time.perf_counter() - started
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "seconds": seconds,
        "quick": quick,
        "study": {key: getattr(chosen, key) for key in ("id", "question", "source", "rule")},
        "seeds": list(budget.seeds),
        "headline": answer.headline,
        "rows": answer.rows,
        "measured": answer.measured,
    }
    return StudyResult(
        document=document,
        study=chosen,
        headline=answer.headline,
        rows=answer.rows,
        measured=answer.measured,
        seeds=list(budget.seeds),
        seconds=seconds,
    )


def _chosen(name: str) -> Study:
    from firstorder.core.errors import ConfigError
    from firstorder.core.settings.toml import nearest
    from firstorder.sim.studies import STUDIES

    known = {each.id: each for each in STUDIES}
    if name not in known:
        raise ConfigError(f"no study {name!r}; {nearest(name, known)}studies: {', '.join(known)}")
    return known[name]


def _folder(stack: ExitStack, out: str | os.PathLike[str] | None) -> Path:
    return Path(out).resolve() if out else Path(stack.enter_context(TemporaryDirectory()))


def _reserve(stack: ExitStack, chosen: Study, budget: Plan) -> None:
    """Take the folder for this study; runs of another study or of other seeds would answer another question."""
    from firstorder.core.runs.folder import reserve

    owned = budget.folder / "study.toml"
    config = {"study": {"id": chosen.id, "rule": chosen.rule, "quick": budget.quick, "seeds": list(budget.seeds)}}
    stack.enter_context(reserve(owned, config, resume=owned.is_file()))


def _shown(value: Any) -> str:
    """A cell of the table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
