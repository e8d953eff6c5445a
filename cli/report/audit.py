"""An audit as one page: the verdict first, then what it stands on, to the single token."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from firstorder.core.audit.finding import Finding
from firstorder.core.audit.report import Report, View
from firstorder.core.audit.table import Cell, Column, Estimate, Table

from . import kit
from .drawn import along, csv_of, drawn, estimated, is_drawn, plotted, with_unit
from .drawn import overview as engines
from .viewer import script, viewer

INTERVALS = "An interval in brackets is of 95 %, clustered by response; where there is none, it cannot be formed."


def audit_report(report: Report) -> dict[str, bytes]:
    """The files of an audit by name: `report.html`, and each table as CSV, its figure as PNG and SVG beside it."""
    files = {f"{table.name}.csv": csv_of(table) for table in report.tables}
    figures = {table.name: drawn(table) for table in report.tables if is_drawn(table)}
    files |= {f"{name}.{suffix}": image for name, both in figures.items() for suffix, image in both.items()}
    return files | {"report.html": audit_page(report, {name: both["svg"] for name, both in figures.items()}).encode()}


def overview(report: Report) -> Figure:
    """Where the engines differ, in one figure.

    Raises:
        DataError: the dump does not tell.
    """
    return engines(report.tables)


def audit_page(report: Report, figures: dict[str, bytes]) -> str:
    """The page; `figures` are the SVGs of tables by their names."""
    parts = [
        _verdict(report),
        _findings(report),
        *(_figure(table, figures[table.name]) for table in report.tables if table.name in figures),
        _tables([table for table in report.tables if table.name not in figures]),
        _conventions(report),
    ]
    if not report.views:
        return kit.document(_title(report), parts)
    reading = kit.section("responses", "Responses, token by token", viewer(report.views))
    return kit.document(_title(report), [*parts, reading], script())


def _title(report: Report) -> str:
    return f"Audit of a dump: {report.format}"


def _verdict(report: Report) -> str:
    """The paragraph, what it stands on, what to ask next, and how much was read."""
    verdict = report.verdict
    state = "fault" if verdict.fault else "normal"
    word, colon, rest = verdict.paragraph.partition(":")  # the fault, or that it is normal, leads the paragraph
    said = f"<p><strong>{kit.text(word + colon)}</strong>{kit.text(rest)}</p>" if colon else f"<p>{kit.text(word)}</p>"
    asked = f"<p>Ask next:</p>\n<ol>{''.join(f'<li>{kit.text(q)}</li>' for q in verdict.questions)}</ol>"
    return f'<div class="verdict {state}" role="region" aria-label="verdict">{said}{asked}</div>\n{_counts(report)}'


def _counts(report: Report) -> str:
    """How much was read, in one sentence."""
    parts = [f"{count:,} {what.replace('_', ' ')}" for what, count in report.counts.items() if "_" not in what]
    of_tokens = [
        f"{count:,} {what.removeprefix('tokens_')}"
        for what, count in report.counts.items()
        if what.startswith("tokens_")
    ]
    more = f" ({', '.join(of_tokens)})" if of_tokens else ""
    return kit.note(f"Read: {', '.join(parts)}{more}.")


def _findings(report: Report) -> str:
    """Every fault, and what could not be looked for."""
    found = "\n".join(_finding(each, report.views) for each in report.findings)
    silent = kit.listed(f"{fault}: the dump has no {', '.join(lacks)}" for fault, lacks in report.silent.items())
    not_asked = f"<details><summary>What the dump could not be asked</summary>{silent}</details>" if silent else ""
    return kit.section("findings", "Findings", found or "<p>No fault was found.</p>", not_asked)


def _finding(finding: Finding, views: tuple[View, ...]) -> str:
    where = ""
    if finding.where is not None:
        place = next((i for i, view in enumerate(views, 1) if view.source == finding.where), None)
        named = kit.text(finding.where) if place is None else kit.link(f"#response-{place}", finding.where)
        where = f"<p class='note'>First seen in {named}.</p>"
    asked = kit.listed(finding.questions)
    title = f"<h3>{kit.text(finding.fault)}</h3>"
    return f'<div class="finding">{title}<p>{kit.text(finding.evidence)}</p>{where}{asked}</div>'


def _figure(table: Table, svg: bytes) -> str:
    shown = f"{table.title}: {', '.join(c.title for c in plotted(table))}, along {along(table).title}"
    band = kit.note("A band or a bar is the 95 % interval.") if estimated(table) else ""
    caption = (kit.note(table.note) if table.note else "") + band
    numbers = f"{_table(table)}\n{_meanings(table.columns)}"
    closed = f"<details><summary>The numbers and what they mean</summary>{numbers}</details>"
    return "\n".join([kit.figure(table.name, table.title, {"svg": svg}, shown, caption), closed])


def _tables(tables: Sequence[Table]) -> str:
    if not tables:
        return ""
    return kit.section("tables", "Numbers", kit.note(INTERVALS), *map(_titled, tables))


def _titled(table: Table) -> str:
    note = kit.note(table.note) if table.note else ""
    whole = _table(table, kit.link(f"{table.name}.csv", "CSV"))
    return f"<h3>{kit.text(table.title)}</h3>\n{note}{whole}{_meanings(table.columns)}"


def _table(table: Table, links: str = "") -> str:
    rows = [[_text(row.get(column.key)) for column in table.columns] for row in table.rows]
    return kit.table(list(map(with_unit, table.columns)), rows, table.title, links)


def _meanings(columns: Sequence[Column]) -> str:
    known = [(column.title, column.key, column.formula) for column in columns if column.formula]
    return kit.terms(known) if known else ""


def _conventions(report: Report) -> str:
    return kit.section("read", "How the dump was read", kit.listed(report.inferred)) if report.inferred else ""


def _text(cell: Cell) -> str:
    """A cell for people."""
    if isinstance(cell, Estimate):
        interval = "" if cell.low is None or cell.high is None else f" [{cell.low:.3g}, {cell.high:.3g}]"
        return f"{cell.value:.4g}{interval}"
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
