"""The report folder: written beside its place, then moved there, so that it is whole or not there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from firstorder.core.runs.files import whole_folder

from .catalogue import FLIPS, KL, REWARD, Panel, Plot, plots, varied
from .claimed import Settled
from .conditions import Conditions, of_claim
from .conditions import draw as draw_conditions
from .conditions import plots as condition_plots
from .curves import Curve, curve
from .figures import METADATA
from .layers import layer_table
from .page import claims_page, page, sweep_page
from .panels import TOGETHER, draw
from .phase import Estimate, diagram, estimates
from .rows import Cell, Number, Row, csv_of, digits, shown, written
from .runs import Array, Run
from .sweeps import OUTCOMES, CellRun, Outcome, Sweep
from .warned import alarm_table

COLUMNS = (
    *("run", "recipe", "quantity", "unit", "step", "steps_done", "members", "value", "low", "high", "each"),
    *("window", "mean", "mean_low", "mean_high"),
)
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
    every = plots(runs)
    plotted = every if len(runs) <= TOGETHER else varied(every, runs)
    files = _over_steps(runs, plotted, lambda plot, curves: draw(plot, runs, curves), page)
    tables: dict[str, Sequence[Row]] = {"layers.csv": layer_table(runs), "alarms.csv": alarm_table(runs)}
    return files | {name: csv_of(rows) for name, rows in tables.items() if rows}


def claims_report(conditions: Conditions, claims: Sequence[Settled]) -> dict[str, bytes]:
    """The files of a report of training claims: a figure for each that was settled condition by condition, then the
    quantities of all runs."""
    runs = [run for group in conditions.values() for run in group]
    plotted = condition_plots(conditions)
    files: dict[str, bytes] = {}
    own: list[tuple[Settled, dict[str, bytes]]] = []
    objective = next((plot for plot in plotted if plot.panels[0] is REWARD[1]), None)
    for claim in claims if objective is not None else ():
        assert objective is not None
        mine = of_claim(claim, conditions)
        curves = _curves(objective, [run for group in mine.values() for run in group])
        if not curves:
            continue
        titles = {condition: f"{condition}: {claim.conditions[condition][0]}" for condition in mine}
        images = draw_conditions(objective, mine, curves, titles)
        files |= _figure(claim.id, images, COLUMNS, (row for each in curves for row in _rows(each)))
        own.append((claim, images))
    return files | _over_steps(
        runs,
        plotted,
        lambda plot, curves: draw_conditions(plot, conditions, curves),
        lambda runs, table, drawn: claims_page(runs, table, drawn, claims, own),
    )


def _curves(plot: Plot, runs: Sequence[Run]) -> list[Curve]:
    return [line for panel in plot.panels for run in runs if (line := curve(run, panel)) is not None]


def _over_steps(
    runs: list[Run],
    plotted: Sequence[Plot],
    drawing: Callable[[Plot, list[Curve]], dict[str, bytes]],
    document: Callable[[list[Run], list[dict[str, str]], list[tuple[Plot, dict[str, bytes]]]], str],
) -> dict[str, bytes]:
    """Figures of runs over their steps, their numbers, the table of the runs and the page."""
    files: dict[str, bytes] = {}
    drawn: list[tuple[Plot, dict[str, bytes]]] = []
    known: list[Curve] = []
    for plot in plotted:
        curves = _curves(plot, runs)
        images = drawing(plot, curves)
        files |= _figure(plot.name, images, COLUMNS, (row for each in curves for row in _rows(each)))
        drawn.append((plot, images))
        known += curves
    table = [_summary(run, known) for run in runs]
    return files | {"summary.csv": csv_of(table), "report.html": document(runs, shown(table), drawn).encode()}


def sweep_report(sweep: Sweep) -> dict[str, bytes]:
    """The files of a report of a sweep."""
    files: dict[str, bytes] = {}
    drawn: list[tuple[Plot, dict[str, bytes]]] = []
    table = [_cell(cell) for cell in sweep.cells]
    for quantity in OUTCOMES:
        cells = estimates(sweep, quantity)
        if all(np.isnan(each.value) for each in cells):
            continue
        images = diagram(sweep, quantity, cells)
        files |= _figure(
            quantity.key, images, ("cell", *sweep.axes, *ESTIMATED), (_estimate(each, quantity) for each in cells)
        )
        drawn.append((Plot(name=quantity.key, title=quantity.title, panels=(quantity,), shared=True), images))
        for row, each in zip(table, cells, strict=True):
            row[f"{quantity.title} [{quantity.unit}]"] = Number(value=each.value, low=each.low, high=each.high)
    return files | {"summary.csv": csv_of(table), "report.html": sweep_page(sweep, shown(table), drawn).encode()}


def _figure(
    name: str, images: Mapping[str, bytes], columns: Sequence[str], rows: Iterable[Iterable[Any]]
) -> dict[str, bytes]:
    """The images of a figure and its data, by file name."""
    return {f"{name}.{suffix}": images[suffix] for suffix in METADATA} | {f"{name}.csv": written(columns, rows)}


def _cell(cell: CellRun) -> dict[str, Cell]:
    """The first columns of a cell's row in the table."""
    state = "to do" if cell.run is None and cell.stopped is None else cell.stopped or "finished"
    return {"cell": cell.name, **{key: str(value) for key, value in cell.point.items()}, "state": state}


def _estimate(each: Estimate, quantity: Outcome) -> list[Any]:
    head = [each.cell.name, *each.cell.point.values(), quantity.key, quantity.unit]
    return [*head, *_numbers(each.each, each.value, each.low, each.high)]


def _rows(line: Curve) -> Iterable[list[Any]]:
    """One row a step."""
    head = [line.run.label, line.run.recipe, line.panel.key, line.panel.unit]
    steps = zip(line.steps.tolist(), line.steps_done.tolist(), strict=True)
    for i, (step, done) in enumerate(steps):
        means = (digits(each[i]) for each in (line.mean, line.mean_low, line.mean_high))
        own = _numbers(line.each[i], line.value[i], line.low[i], line.high[i])
        yield [*head, step, done, *own, line.window, *means]


def _numbers(each: Array, value: float, low: float, high: float) -> list[Any]:
    """How many members there are, the value, its interval, and the members' values separated by spaces."""
    return [len(each), digits(value), digits(low), digits(high), " ".join(digits(one) or "nan" for one in each)]


def _summary(run: Run, known: Sequence[Curve]) -> dict[str, Cell]:
    """The row of a run in the table."""
    steps = str(run.steps) if run.steps == run.planned else f"{run.steps} of {run.planned}"
    row = {"run": run.label, "recipe": run.recipe, "steps": steps, "members": str(run.members)}
    return row | {f"{title} [{panel.unit}]": _final(run, panel, known) for title, panel in FINAL.items()}


def _final(run: Run, panel: Panel, known: Sequence[Curve]) -> Cell:
    last = next((line.last() for line in known if line.run is run and line.panel is panel), None)
    if last is None:
        return "not logged"
    done, value, low, high = last
    return Number(value=value, low=low, high=high, step=done, late=done != run.steps - 1 + panel.after)
