"""Figures, their data and one page from run folders."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .results import require


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """A written report: its page, and what it shows in words."""

    page: Path
    contents: str

    def __str__(self) -> str:
        return f"{self.page}: {self.contents}"


def report(*runs: str | os.PathLike[str], out: str | os.PathLike[str]) -> ReportResult:
    """Compare runs, cells of a sweep or runs of the training claims: report.html, figures, and their data as CSV.

    Args:
        runs: run folders, or the folder of one sweep or of the training claims; results that have a folder, too.
        out: a new or empty folder.

    Raises:
        ConfigError: matplotlib is not installed, a folder cannot be read or written, or a sweep is not alone.
    """
    paths = checked(runs, out)
    from firstorder.cli.report.files import write_report

    contents, what = _files(paths)
    write_report(Path(out), contents)
    return ReportResult(page=Path(out) / "report.html", contents=what)


def checked(runs: tuple[str | os.PathLike[str], ...], out: str | os.PathLike[str]) -> list[Path]:
    """The folders to read; raises as `report`."""
    from firstorder.core.errors import ConfigError
    from firstorder.core.runs.files import check_folder

    require("matplotlib", "report draws with", "report")
    check_folder(Path(out))
    paths = [Path(run) for run in runs]
    if not paths:
        raise ConfigError("a report takes at least one folder of a run or of a sweep, got none")
    whole = [path for path in paths if holds_many(path)]
    if whole and len(paths) > 1:
        raise ConfigError(f"{whole[0]} holds many runs and is reported alone; give it alone, or its cells, cells/NAME")
    return paths


def holds_many(path: Path) -> bool:
    """Whether a folder is that of a sweep, or of the training claims."""
    from firstorder.cli.report.conditions import is_claims
    from firstorder.cli.report.sweeps import is_sweep

    return is_sweep(path) or is_claims(path)


def _files(paths: list[Path]) -> tuple[Callable[[], dict[str, bytes]], str]:
    """What makes the files of a report, and what they show."""
    from firstorder.cli.report import claimed
    from firstorder.cli.report.conditions import is_claims, read_conditions
    from firstorder.cli.report.files import claims_report, run_report, sweep_report
    from firstorder.cli.report.runs import read_runs
    from firstorder.cli.report.sweeps import is_sweep, read_sweep

    if is_claims(paths[0]):
        conditions, claims = read_conditions(paths[0]), claimed.read(paths[0])
        what = f"{len(conditions)} conditions, {counted(len(claims), 'claim')} settled"
        return lambda: claims_report(conditions, claims), what
    if is_sweep(paths[0]):
        sweep = read_sweep(paths[0])
        return lambda: sweep_report(sweep), f"{len(sweep.cells)} cells"
    runs = read_runs(paths)
    return lambda: run_report(runs), counted(len(runs), "run")


def counted(count: int, word: str) -> str:
    """How many of something."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def open_page(page: Path) -> bool:
    """Open a page in the user's browser; False, with a line that says so, where there is none."""
    import logging
    import webbrowser

    opened = webbrowser.open(page.resolve().as_uri())
    if not opened:
        logging.getLogger("firstorder").warning("no browser was found; open %s yourself", page)
    return opened
