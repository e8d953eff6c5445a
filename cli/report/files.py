"""The report folder: written beside its place, then moved there, so that it is whole or not there."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from firstorder.core.runs.files import whole_folder

from .catalogue import FLIPS, KL, REWARD, Panel, Plot, plots
from .conditions import Conditions, shown
from .conditions import draw as draw_conditions
from .curves import Curve, curve
from .figures import draw
from .layers import layer_table
from .page import claims_page, page, sweep_page
from .phase import Estimate, diagram, estimates
from .runs import Array, Run
from .sweeps import OUTCOMES, CellRun, Outcome, Sweep
from .warned import alarm_table

COLUMNS = ("run", "recipe", "quantity", "unit", "step", "steps_done", "members", "value", "low", "high", "each")
ESTIMATED = ("outcome", "unit", "members", "value", "low", "high", "each")
FINAL = {"final J of π": REWARD[1], "final J of μ": REWARD[2], "final kl (k1)": KL[0], "final flip rate": FLIPS[0]}


def write_report(out: Path, contents: Callable[[], dict[str, bytes]]) -> None:
    """Write the page, the figures and their data, by name.

    Raises:
        ConfigError: the folder cannot be written; nothing is left behind.
    """
    with whole_folder(out) as partial:
        for name, content in contents().items():
            (partial / name).write_bytes(content)


def run_report(runs: list[Run]) -> dict[str, bytes]:
    """The files of a report of runs."""
    files = _over_steps(runs, plots(runs), lambda plot, curves: draw(plot, runs, curves), page)
    tables = {"layers.csv": layer_table(runs), "alarms.csv": alarm_table(runs)}
    return files | {name: _table_csv(rows) for name, rows in tables.items() if rows}


def claims_report(conditions: Conditions) -> dict[str, bytes]:
    """The files of a report of the runs of training claims."""
    runs = [run for group in conditions.values() for run in group]
    return _over_steps(
        runs, shown(conditions), lambda plot, curves: draw_conditions(plot, conditions, curves), claims_page
    )


def _over_steps(
    runs: list[Run],
    shown: Sequence[Plot],
    drawing: Callable[[Plot, list[Curve]], dict[str, bytes]],
    document: Callable[[list[Run], list[dict[str, str]], list[tuple[Plot, bytes]]], str],
) -> dict[str, bytes]:
    """Figures of runs over their steps, their numbers, the table of the runs and the page."""
    files: dict[str, bytes] = {}
    drawn: list[tuple[Plot, bytes]] = []
    known: list[Curve] = []
    for plot in shown:
        curves = [line for panel in plot.panels for run in runs if (line := curve(run, panel)) is not None]
        images = drawing(plot, curves)
        files |= _figure(plot.name, images, COLUMNS, (row for each in curves for row in _rows(each)))
        drawn.append((plot, images["svg"]))
        known += curves
    table = [_summary(run, known) for run in runs]
    return files | {"summary.csv": _table_csv(table), "report.html": document(runs, table, drawn).encode()}


def sweep_report(sweep: Sweep) -> dict[str, bytes]:
    """The files of a report of a sweep."""
    files: dict[str, bytes] = {}
    drawn: list[tuple[Plot, bytes]] = []
    table = [_cell(cell) for cell in sweep.cells]
    for quantity in OUTCOMES:
        cells = estimates(sweep, quantity)
        if all(np.isnan(each.value) for each in cells):
            continue
        images = diagram(sweep, quantity, cells)
        files |= _figure(
            quantity.key, images, ("cell", *sweep.axes, *ESTIMATED), (_estimate(each, quantity) for each in cells)
        )
        drawn.append((Plot(name=quantity.key, title=quantity.title, panels=(quantity,), shared=True), images["svg"]))
        for row, each in zip(table, cells, strict=True):
            row[f"{quantity.title} [{quantity.unit}]"] = _interval(each.value, each.low, each.high)
    return files | {"summary.csv": _table_csv(table), "report.html": sweep_page(sweep, table, drawn).encode()}


def _figure(
    name: str, images: dict[str, bytes], columns: Sequence[str], rows: Iterable[Iterable[Any]]
) -> dict[str, bytes]:
    """The images of a figure and its data, by file name."""
    return {f"{name}.{suffix}": image for suffix, image in images.items()} | {f"{name}.csv": _csv(columns, rows)}


def _cell(cell: CellRun) -> dict[str, str]:
    """The first columns of a cell's row in the table, as text."""
    state = "to do" if cell.run is None and cell.stopped is None else cell.stopped or "finished"
    return {"cell": cell.name} | {key: str(value) for key, value in cell.point.items()} | {"state": state}


def _estimate(each: Estimate, quantity: Outcome) -> list[Any]:
    head = [each.cell.name, *each.cell.point.values(), quantity.key, quantity.unit]
    return [*head, *_numbers(each.each, each.value, each.low, each.high)]


def _rows(line: Curve) -> Iterable[list[Any]]:
    """One row a step."""
    head = [line.run.label, line.run.recipe, line.panel.key, line.panel.unit]
    steps = zip(line.steps.tolist(), line.steps_done.tolist(), strict=True)
    for i, (step, done) in enumerate(steps):
        yield [*head, step, done, *_numbers(line.each[i], line.value[i], line.low[i], line.high[i])]


def _numbers(each: Array, value: float, low: float, high: float) -> list[Any]:
    """How many members there are, the value, its interval, and the members' values separated by spaces."""
    return [len(each), _number(value), _number(low), _number(high), " ".join(_number(one) or "nan" for one in each)]


def _summary(run: Run, known: Sequence[Curve]) -> dict[str, str]:
    """The row of a run in the table, as text."""
    steps = str(run.steps) if run.steps == run.planned else f"{run.steps} of {run.planned}"
    row = {"run": run.label, "recipe": run.recipe, "steps": steps, "members": str(run.members)}
    return row | {f"{title} [{panel.unit}]": _final(run, panel, known) for title, panel in FINAL.items()}


def _final(run: Run, panel: Panel, known: Sequence[Curve]) -> str:
    last = next((line.last() for line in known if line.run is run and line.panel is panel), None)
    if last is None:
        return "not logged"
    done, *numbers = last
    text = _interval(*numbers)
    return text if done == run.steps - 1 + panel.after else f"{text} at step {done}"


def _interval(value: float, low: float, high: float) -> str:
    """A value and its interval for people; nothing for NaN."""
    if np.isnan(value):
        return ""
    return f"{value:.4g}" if np.isnan(low) else f"{value:.4g} [{low:.4g}, {high:.4g}]"


def _table_csv(rows: Sequence[Mapping[str, str]]) -> bytes:
    """A table whose rows all have the same columns."""
    return _csv(list(rows[0]), (row.values() for row in rows))


def _csv(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()


def _number(value: float) -> str:
    """All digits; nothing for NaN."""
    return "" if np.isnan(value) else repr(float(value))
