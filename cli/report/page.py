"""The page: plain HTML, images inside, nothing fetched."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from firstorder import __version__
from firstorder.sim.trials.statistics import LEVEL, RESAMPLES

from .catalogue import Plot
from .layers import idle_parts, layer_table
from .runs import Run, differences
from .sweeps import Sweep
from .warned import alarm_table

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #111; background: #fff; max-width: 1140px; margin: 2em auto;
  padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin: 2em 0 .4em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9em; }
th, td { text-align: left; padding: .25em .9em .25em 0; border-bottom: 1px solid #ccc; vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 0; break-inside: avoid; } img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figcaption, dl, p.note { font-size: .9em; color: #333; } dl { margin: .4em 0; }
dt { font-weight: 600; } dd { margin: 0 0 .3em 1.5em; } code { font-size: .95em; }
"""
ESTIMATE = (
    "a value is their interquartile mean (plain mean below 4) and an interval the "
    f"{LEVEL:.0%} percentile bootstrap interval over members ({RESAMPLES} resamples, fixed seed)"
)
NARROW = "With few members such an interval is too narrow."
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(runs: list[Run], table: Sequence[Mapping[str, str]], drawn: Sequence[tuple[Plot, bytes]]) -> str:
    """The report as one HTML document.

    Args:
        runs: the runs.
        table: one row a run, cells by column, as text.
        drawn: every figure with its SVG.
    """
    lines = ", ".join(f"{run.label} ({run.recipe})" for run in runs)
    figures = [_figure(plot, svg, f"{plot.title} over global steps, runs {lines}") for plot, svg in drawn]
    title = "Training report: " + ", ".join(run.label for run in runs)
    before = [_table(table), _intervals(runs), _idle(runs), _alarms(runs), _differences(runs)]
    return _document(title, [*before, *figures, _layers(runs)])


def claims_page(runs: list[Run], table: Sequence[Mapping[str, str]], drawn: Sequence[tuple[Plot, bytes]]) -> str:
    """The report of the runs of training claims; arguments as `page`."""
    figures = [_figure(plot, svg, f"{plot.title} over global steps in every condition") for plot, svg in drawn]
    members = max(run.members for run in runs)
    note = f"<p class='note'>{escape(f'Every run has {members} seeds: {ESTIMATE}, for each step on its own.')}</p>"
    return _document("Training claims", [_table(table), note, *figures])


def sweep_page(sweep: Sweep, table: Sequence[Mapping[str, str]], drawn: Sequence[tuple[Plot, bytes]]) -> str:
    """The report of a sweep; arguments as `page`, one row a cell."""
    axes = ", ".join(f"{key} ({len(values)} values)" for key, values in sweep.axes.items())
    figures = [_figure(plot, svg, f"{plot.title} over {axes}") for plot, svg in drawn]
    members = max(cell.run.members for cell in sweep.cells if cell.run is not None)
    return _document(f"Sweep report: {sweep.label}", [_table(table), _cells(members), *figures])


def _document(title: str, parts: Sequence[str]) -> str:
    body = [f"<h1>{escape(title)}</h1>", *parts, f"<p class='note'>firstorder {escape(__version__)}</p>"]
    head = (
        f"<meta charset='utf-8'><meta http-equiv='Content-Security-Policy' content=\"{POLICY}\">"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{CSS}</style>"
    )
    return (
        f"<!doctype html>\n<html lang='en'>\n<head>{head}</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _table(rows: Sequence[Mapping[str, str]], file: str = "summary.csv") -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in rows[0])
    body = "\n".join(
        "<tr>" + "".join(f"<td class='number'>{escape(cell)}</td>" for cell in row.values()) + "</tr>" for row in rows
    )
    download = f'<a href="{file}">CSV</a>'
    return f"<div class='wide'><table>\n<tr>{head}</tr>\n{body}\n</table></div>\n<p class='note'>{download}</p>"


def _intervals(runs: list[Run]) -> str:
    """What the numbers of an ensemble are; nothing if no run is one."""
    several = [run for run in runs if run.members > 1]
    text = "KL and flip rate are those of the last step's batch."
    if several:
        counts = ", ".join(f"{run.label} {run.members}" for run in several)
        text += f" Where a run has several members ({counts}), {ESTIMATE}, for each step on its own. {NARROW}"
    if len(several) < len(runs):
        text += " A run of one policy has no interval."
    return f"<p class='note'>{escape(text)}</p>"


def _idle(runs: list[Run]) -> str:
    """The parts that could not act; nothing if all could."""
    named = [f"{run.label} {', '.join(idle)}" for run in runs if (idle := idle_parts(run))]
    return f"<p class='note'>{escape('Could not act in the schedule: ' + '; '.join(named))}.</p>" if named else ""


def _layers(runs: list[Run]) -> str:
    """What replay did by layer; nothing where it was not logged."""
    rows = layer_table(runs)
    note = "<p class='note'>Means over all steps and members.</p>"
    return f'<h2 id="layers">What replay did, by layer</h2>\n{note}\n{_table(rows, "layers.csv")}' if rows else ""


def _alarms(runs: list[Run]) -> str:
    """The alarms of the runs; nothing where none was watched, or none started."""
    rows = alarm_table(runs)
    note = (
        "<p class='note'>As <code>firstorder train --alarm</code> said. A cross in a figure is where an alarm starts "
        "in its first member, on the curve of what it reads and on those of the reward.</p>"
    )
    return f'<h2 id="alarms">Alarms</h2>\n{note}\n{_table(rows, "alarms.csv")}' if rows else ""


def _cells(members: int) -> str:
    """What the numbers of a sweep are."""
    text = (
        f"Where a cell has several members, {ESTIMATE}. {NARROW}"
        if members > 1
        else "Every cell is a run of one policy, so there are no intervals: set sim.members for an ensemble of seeds."
    )
    text += " A hatched or empty place is a cell that is to do, stopped early or did not log the quantity."
    text += " Each finished cell is a run folder, cells/NUMBER, of which firstorder report shows the steps."
    return f"<p class='note'>{escape(text)}</p>"


def _differences(runs: list[Run]) -> str:
    if len(runs) == 1:
        return ""
    differing = differences(runs)
    if not differing:
        return "<h2>Configuration</h2>\n<p>The runs have the same configuration.</p>"
    head = "<th>key</th>" + "".join(f"<th>{escape(run.label)}</th>" for run in runs)
    body = "\n".join(
        f"<tr><td><code>{escape(key)}</code></td>" + "".join(f"<td>{escape(_value(v))}</td>" for v in row) + "</tr>"
        for key, row in differing.items()
    )
    return (
        f"<h2>Where the configurations differ</h2>\n<div class='wide'><table>\n<tr>{head}</tr>\n{body}\n</table></div>"
    )


def _figure(plot: Plot, svg: bytes, shown: str) -> str:
    image = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    links = " · ".join(f'<a href="{plot.name}.{s}">{s.upper()}</a>' for s in ("png", "svg", "csv"))
    meanings = "\n".join(
        f"<dt>{escape(panel.title)} <code>{escape(panel.key)}</code></dt>"
        f"<dd>{escape(panel.meaning)} [{escape(panel.unit)}]"
        + (f"; {escape(panel.source)}" if panel.source else "")
        + (f"; alarm above {panel.alarm:g} there" if panel.alarm is not None else "")
        + "</dd>"
        for panel in plot.panels
    )
    note = f"<p class='note'>{escape(plot.note)}</p>\n" if plot.note else ""
    return (
        f'<h2 id="{plot.name}">{escape(plot.title)}</h2>\n<figure>\n<img alt="{escape(shown)}" src="{image}">\n'
        f"<figcaption>{note}<dl>\n{meanings}\n</dl>{links}</figcaption>\n</figure>"
    )


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    return str(value).lower() if isinstance(value, bool) else str(value)
