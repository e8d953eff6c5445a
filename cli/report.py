"""`firstorder report`: figures, their data and one page from run folders."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import typer


def report(
    runs: list[str] = typer.Argument(metavar="RUN...", help="Run folders that `firstorder train` wrote."),
    out: str = typer.Option(..., "--out", metavar="DIR", help="A new or empty folder for the page, figures and data."),
) -> None:
    """Compare runs: report.html, each figure as PNG and SVG, and the numbers of each figure as CSV."""
    from firstorder.core.errors import ConfigError

    try:
        import_module("matplotlib")
    except ImportError:
        raise ConfigError("report draws with matplotlib; pip install 'firstorder[report]'") from None
    from .reporting.files import check_folder, write_report
    from .reporting.runs import read_runs

    check_folder(Path(out))
    write_report(Path(out), read_runs([Path(run) for run in runs]))
    typer.echo(f"{Path(out) / 'report.html'}: {len(runs)} {'run' if len(runs) == 1 else 'runs'}")
