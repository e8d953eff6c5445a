"""Other people's runs read from their dumps: numbers with intervals, faults by name, and a verdict."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .results import Result, require_matplotlib
from .tokenizer import token_texts

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table as Shown
    from rich.text import Text

    from firstorder.core.audit.finding import Known
    from firstorder.core.audit.report import Report
    from firstorder.core.audit.table import Cell, Table
    from firstorder.core.formats.format import Options
    from firstorder.core.formats.registry import Dump

SCHEMA = "firstorder.audit/1"
FILLS = ("none", "zeros", "minus-one", "arange")
MODES = ("disabled", "R2", "R3")
PRECISIONS = ("fp32", "fp16", "bf16", "fp8")
PRINTED = ("numbers",)  # tables that the terminal shows; the page and the JSON have them all
HIDDEN = ("formula", "source")  # columns that it has no room for


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """What a user says of a dump; None where the files are left to speak for themselves.

    Args:
        format: whose dump it is.
        layers: the MoE layers, `3-47` or `1,3,5`, where routes hold a row for every layer.
        fill: what stands in route rows that no token has: none, zeros, minus-one or arange.
        experts: of the model.
        top_k: experts a token, where routes are flat.
        replay: what the run replays: disabled, R2 or R3.
        precision: of the rollout engine: fp32, fp16, bf16 or fp8.
        minibatches: updates a rollout.
        tokenizer: a tokenizer.json, so that the page shows tokens as text.
    """

    format: str | None = None
    layers: str | None = None
    fill: str | None = None
    experts: int | None = None
    top_k: int | None = None
    replay: str | None = None
    precision: str | None = None
    minibatches: int | None = None
    tokenizer: str | os.PathLike[str] | None = None

    def check(self) -> None:
        """Refuse values that there are not, before anything is read; raises ConfigError."""
        self.reading()
        _one_of("--replay", self.replay, MODES)
        _one_of("--precision", self.precision, PRECISIONS)
        _positive("--minibatches", self.minibatches)

    def reading(self) -> Options:
        """What readers are told.

        Raises:
            ConfigError: a value is none of those that there are.
        """
        from firstorder.core.formats.format import Options

        fill: Any = _one_of("--fill", self.fill, FILLS)
        return Options(
            fill=fill,
            layers=_layers(self.layers),
            experts=_positive("--experts", self.experts),
            top_k=_positive("--top-k", self.top_k),
        )

    def known(self, dump: Dump) -> Known:
        """What is known of the run: what the user says, else what the first file says of itself."""
        from firstorder.core.audit.finding import Known
        from firstorder.core.formats.neutral import NEUTRAL, about

        said: dict[str, Any] = {name: getattr(self, name) for name in ("experts", "replay", "precision", "minibatches")}
        written = about(dump.files[0]).model_dump() if dump.format is NEUTRAL else {}
        return Known(**{name: written.get(name) if value is None else value for name, value in said.items()})


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class AuditResult(Result):
    """What an audit says.

    Args:
        report: the verdict, findings, tables and views.
        page: where the page was written, None if it was not asked for.
    """

    report: Report
    page: Path | None

    @property
    def code(self) -> int:
        """What the command exits with: 0 normal, 1 a fault is named."""
        return int(self.report.verdict.fault is not None)

    def blocks(self) -> Iterator[Shown | Text]:
        """The verdict, the questions that follow, what was inferred, and the numbers."""
        from rich.text import Text

        verdict = self.report.verdict
        yield Text(verdict.paragraph, style="bold red" if verdict.fault else "bold green")
        for question in verdict.questions:
            yield Text(f"next: {question}")
        for finding in self.report.findings[1:]:
            yield Text(f"also {finding.fault}: {finding.evidence}")
        yield from (Text(f"read as: {sentence}", style="dim") for sentence in self.report.inferred)
        for table in self.report.tables:
            if table.name in PRINTED:
                yield shown(table, HIDDEN)
        if self.page is not None:
            yield Text(f"page: {self.page}", no_wrap=True)

    def records(self) -> list[dict[str, Any]]:
        """A row for each quantity of the table of numbers: `quantity`, `value`, `low`, `high`, `unit`."""
        rows = next((table.rows for table in self.report.tables if table.name == "numbers"), ())
        return [flat(row) for row in rows]

    def plot(self) -> Figure:
        """The figure of the page: where the engines differ, by position and by probability."""
        require_matplotlib()
        from firstorder.cli.report.audit import overview

        return overview(self.report)


def audit(
    *paths: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> AuditResult:
    """Read the rollout and training dumps of one run, of any framework.

    Args:
        paths: files, or folders of them.
        out: a new folder for the page, its figures and data.
        options: those of `AuditOptions`, by name.

    Raises:
        DataError: a file cannot be read; it is named, with the row, and nothing is written.
        ConfigError: an option is refused, or a library is missing.
    """
    return audited(paths, AuditOptions(**options), out=out)


def audited(
    paths: Sequence[str | os.PathLike[str]], options: AuditOptions, *, out: str | os.PathLike[str] | None = None
) -> AuditResult:
    """`audit`, with its options as one value."""
    from firstorder import __version__
    from firstorder.core.errors import ConfigError
    from firstorder.core.runs.files import check_folder

    started = time.perf_counter()
    if not paths:
        raise ConfigError("audit takes at least one file or folder, got none; give the dump of a run")
    if out is not None:
        require_matplotlib()
        check_folder(Path(out))
    from firstorder.core.audit.auditor import audit as made

    texts = None if options.tokenizer is None else token_texts(Path(options.tokenizer))
    options.check()
    dump = opened(paths, options)
    report = made(dump, options.known(dump), border(), texts)
    page = None if out is None else _written(report, Path(out))
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "seconds": time.perf_counter() - started,
        "paths": [os.fspath(path) for path in paths],
        "options": asdict(options),
        "result": described(report),
    }
    return AuditResult(document=document, report=report, page=page)


def opened(paths: Sequence[str | os.PathLike[str]], options: AuditOptions) -> Dump:
    """The dump of some paths; raises as `audit`."""
    from firstorder.core.formats.registry import open_dump

    return open_dump([Path(path) for path in paths], options.format, options.reading())


def check_together(*, follow: bool, self_test: bool, beside: Mapping[str, object]) -> None:
    """Refuse what would have no effect beside `--follow` or `--self-test`.

    Raises:
        ConfigError: naming both.
    """
    from firstorder.core.errors import ConfigError

    lead = "--self-test" if self_test else "--follow" if follow else None
    idle = {"--self-test": ("PATH", "--follow", "--out"), "--follow": ("--out", "--json")}
    for name in idle.get(lead or "", ()):
        if beside.get(name):
            raise ConfigError(f"{name} does nothing beside {lead}; leave one of them out")


def border() -> Callable[[float], float]:
    """From a KL to the length from which on training without importance sampling collapsed in `firstorder study
    regimes`; infinite below the smallest KL at which a border was found, where the line would be a guess."""
    from firstorder.sim.trials.borders import line, read

    known = [each for each in read() if (each.finding, each.axis) == ("collapse", "horizon")]
    least = min(each.kl for each in known)
    return lambda kl: line(known, kl)[0] if kl >= least else math.inf


def _written(report: Report, out: Path) -> Path:
    from firstorder.cli.report.audit import audit_report
    from firstorder.cli.report.files import write_report

    write_report(out, lambda: audit_report(report))
    return out / "report.html"


def described(report: Report) -> dict[str, Any]:
    """A report as JSON holds it: all but the views."""
    whole = asdict(replace(report, views=()))
    del whole["views"]
    return whole


def _layers(text: str | None) -> tuple[int, ...] | None:
    """`3-5,8` as (3, 4, 5, 8)."""
    from firstorder.core.errors import ConfigError

    if text is None:
        return None
    parts = [re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part) for part in text.split(",")]
    spans = [(int(part[1]), int(part[2] or part[1])) for part in parts if part is not None]
    if len(spans) < len(parts) or any(first > last for first, last in spans):
        raise ConfigError(f"--layers must be numbers and ranges such as 3-47 or 1,3,5, got {text!r}")
    return tuple(dict.fromkeys(layer for first, last in spans for layer in range(first, last + 1)))


def _one_of(flag: str, value: str | None, known: Sequence[str]) -> str | None:
    from firstorder.core.errors import ConfigError

    if value is not None and value not in known:
        raise ConfigError(f"{flag} must be one of {', '.join(known)}, got {value!r}")
    return value


def _positive(flag: str, value: int | None) -> int | None:
    from firstorder.core.errors import ConfigError

    if value is not None and value < 1:
        raise ConfigError(f"{flag} must be at least 1, got {value}")
    return value


def shown(table: Table, hidden: Sequence[str]) -> Shown:
    """A table for the terminal, without the columns that only a page has room for."""
    from rich.table import Table as Shown

    drawn = Shown(title=table.title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    columns = [column for column in table.columns if column.key not in hidden]
    for column in columns:
        drawn.add_column(column.title, overflow="fold")
    for row in table.rows:
        drawn.add_row(*(_cell(row.get(column.key)) for column in columns))
    return drawn


def _cell(cell: Cell) -> str:
    from firstorder.core.audit.table import Estimate

    if isinstance(cell, Estimate):
        return _cell(cell.value) + (f" [{cell.low:.3g}, {cell.high:.3g}]" if cell.low is not None else "")
    return "" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def flat(row: Mapping[str, Cell]) -> dict[str, Any]:
    """A row whose estimates are three columns."""
    from firstorder.core.audit.table import Estimate

    found: dict[str, Any] = {}
    for name, cell in row.items():
        found |= asdict(cell) if isinstance(cell, Estimate) else {name: cell}
    return found
