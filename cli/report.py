"""`firstorder report`: figures, their data and one page from run folders."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import typer


def report(
    runs: list[str] = typer.Argument(
        metavar="RUN...|SWEEP", help="Run folders that `firstorder train` wrote, or the folder of one sweep."
    ),
    out: str = typer.Option(..., "--out", metavar="DIR", help="A new or empty folder for the page, figures and data."),
) -> None:
    """Compare runs, or the cells of a sweep: report.html, each figure as PNG and SVG, and its numbers as CSV."""
    from firstorder.core.errors import ConfigError

    try:
        import_module("matplotlib")
    except ImportError:
        raise ConfigError("report draws with matplotlib; pip install 'firstorder[report]'") from None
    from .reporting.files import check_folder, run_report, sweep_report, write_report
    from .reporting.runs import read_runs
    from .reporting.sweeps import is_sweep, read_sweep

    check_folder(Path(out))
    paths = [Path(run) for run in runs]
    sweeps = [path for path in paths if is_sweep(path)]
    if sweeps and len(paths) > 1:
        raise ConfigError(f"{sweeps[0]} is a sweep and is reported alone; give it alone, or its cells, cells/NUMBER")
    if sweeps:
        sweep = read_sweep(sweeps[0])
        write_report(Path(out), lambda: sweep_report(sweep))
        what = f"{len(sweep.cells)} cells"
    else:
        read = read_runs(paths)
        write_report(Path(out), lambda: run_report(read))
        what = f"{len(read)} {'run' if len(read) == 1 else 'runs'}"
    typer.echo(f"{Path(out) / 'report.html'}: {what}")
