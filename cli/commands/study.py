"""`firstorder study`: an open question, answered with numbers and a figure."""

from __future__ import annotations

import typer

from firstorder.cli import complete, output
from firstorder.cli.api import study as api
from firstorder.cli.progress import shown


def study(
    name: str | None = typer.Argument(
        None, autocompletion=complete.studies, help="The study; without one, the questions there are."
    ),
    quick: bool = typer.Option(False, "--quick", help="Fewer seeds, conditions and updates: a first look."),
    out: str | None = typer.Option(None, "--out", metavar="DIR", help="Keep the runs, and go on there."),
    json: str | None = typer.Option(None, "--json", metavar="FILE", help="Write JSON to FILE, or to stdout for -."),
) -> None:
    """Answer an open question by training what it takes, with a rule that was fixed beforehand."""
    from firstorder.core.errors import ConfigError

    if name is None:
        if quick or out or json:
            raise ConfigError(
                "--quick, --out and --json are about one study; give its name, `firstorder study` lists them"
            )
        api.studies().print()
        return
    output.check_target(json)
    with shown("study"):
        result = api.study(name, quick=quick, out=out)
    output.show(result, json)
