"""The report folder: written beside its place, then moved there, so that it is whole or not there."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from firstorder.core.errors import ConfigError

from .catalogue import FLIPS, KL, REWARD, Panel, Plot, plots
from .curves import Curve, curve
from .figures import draw
from .page import page
from .runs import Run

COLUMNS = ("run", "recipe", "quantity", "unit", "step", "steps_done", "members", "value", "low", "high", "each")
FINAL = {"final J of π": REWARD[1], "final J of μ": REWARD[2], "final kl (k1)": KL[0], "final flip rate": FLIPS[0]}


def check_folder(out: Path) -> None:
    """Refuse a place for the report that is taken, before the work is done.

    Raises:
        ConfigError: it is a file, or a folder that is not empty.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"--out {out} is not empty; give a new folder")


def write_report(out: Path, runs: list[Run]) -> None:
    """Write the page, the figures and their data.

    Raises:
        ConfigError: the folder cannot be written; nothing is left behind.
    """
    target = out.resolve()
    partial = target.parent / f".{target.name}.{os.getpid()}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        for name, content in _contents(runs).items():
            (partial / name).write_bytes(content)
        os.replace(partial, target)
    except OSError as error:
        raise ConfigError(f"cannot write --out {out}: {error.strerror}; give another folder") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _contents(runs: list[Run]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    drawn: list[tuple[Plot, bytes]] = []
    known: list[Curve] = []
    for plot in plots(runs):
        curves = [found for panel in plot.panels for run in runs if (found := curve(run, panel)) is not None]
        images = draw(plot, runs, curves)
        files |= {f"{plot.name}.{suffix}": image for suffix, image in images.items()}
        files[f"{plot.name}.csv"] = _csv(COLUMNS, (row for each in curves for row in _rows(each)))
        drawn.append((plot, images["svg"]))
        known += curves
    table = [_summary(run, known) for run in runs]
    files["summary.csv"] = _csv(list(table[0]), (row.values() for row in table))
    files["report.html"] = page(runs, table, drawn).encode()
    return files


def _rows(found: Curve) -> Iterable[list[Any]]:
    """One row a step; `each` holds the members' values, separated by spaces."""
    run, panel = found.run, found.panel
    head = [run.label, run.recipe, panel.key, panel.unit]
    for i, step in enumerate(found.steps):
        numbers = [_number(x[i]) for x in (found.value, found.low, found.high)]
        each = " ".join(_number(value) or "nan" for value in found.each[i])
        yield [*head, int(step), int(found.steps_done[i]), found.each.shape[1], *numbers, each]


def _summary(run: Run, known: Sequence[Curve]) -> dict[str, str]:
    """The row of a run in the table, as text."""
    steps = str(run.steps) if run.steps == run.planned else f"{run.steps} of {run.planned}"
    row = {"run": run.label, "recipe": run.recipe, "steps": steps, "members": str(run.members)}
    return row | {f"{title} [{panel.unit}]": _final(run, panel, known) for title, panel in FINAL.items()}


def _final(run: Run, panel: Panel, known: Sequence[Curve]) -> str:
    last = next((found.last() for found in known if found.run is run and found.panel is panel), None)
    if last is None:
        return "not logged"
    done, value, low, high = last
    text = f"{value:.4g}" if np.isnan(low) else f"{value:.4g} [{low:.4g}, {high:.4g}]"
    return text if done == run.steps - 1 + panel.after else f"{text} at step {done}"


def _csv(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()


def _number(value: float) -> str:
    """All digits; nothing for NaN."""
    return "" if np.isnan(value) else repr(float(value))
