"""`firstorder report`: figures, their data and one page from run folders."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import typer

from firstorder.cli.progress import shown


def report(
    runs: list[str] = typer.Argument(
        metavar="RUN...|SWEEP",
        help="Run folders that `firstorder train` wrote, or the folder of one sweep or of `validate --training`.",
    ),
    out: str = typer.Option(..., "--out", metavar="DIR", help="A new or empty folder for the page, figures and data."),
) -> None:
    """Compare runs, cells of a sweep or runs of the training claims: report.html, PNG and SVG figures, data as CSV."""
    from firstorder.core.errors import ConfigError
    from firstorder.core.runs.files import check_folder

    try:
        import_module("matplotlib")
    except ImportError:
        raise ConfigError("report draws with matplotlib; pip install 'firstorder[report]'") from None
    from firstorder.cli.report.conditions import is_claims, read_conditions
    from firstorder.cli.report.files import claims_report, run_report, sweep_report, write_report
    from firstorder.cli.report.runs import read_runs
    from firstorder.cli.report.sweeps import is_sweep, read_sweep

    check_folder(Path(out))
    paths = [Path(run) for run in runs]
    whole = [path for path in paths if is_sweep(path) or is_claims(path)]
    if whole and len(paths) > 1:
        raise ConfigError(f"{whole[0]} holds many runs and is reported alone; give it alone, or its cells, cells/NAME")
    with shown("report"):
        if whole and is_claims(whole[0]):
            conditions = read_conditions(whole[0])
            write_report(Path(out), lambda: claims_report(conditions))
            what = f"{len(conditions)} conditions"
        elif whole:
            sweep = read_sweep(whole[0])
            write_report(Path(out), lambda: sweep_report(sweep))
            what = f"{len(sweep.cells)} cells"
        else:
            read = read_runs(paths)
            write_report(Path(out), lambda: run_report(read))
            what = f"{len(read)} {'run' if len(read) == 1 else 'runs'}"
    typer.echo(f"{Path(out) / 'report.html'}: {what}")
