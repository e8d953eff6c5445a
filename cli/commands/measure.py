"""`firstorder measure`: one recipe's exact error, bias and variance."""

from __future__ import annotations

import typer

from firstorder.cli import complete, output
from firstorder.cli.api import measure as api
from firstorder.cli.progress import shown


def measure(
    recipe: str = typer.Argument(
        autocompletion=complete.recipes, help="A shipped recipe (`firstorder recipes` lists them) or a TOML file."
    ),
    set_: list[str] = typer.Option(
        [], "--set", metavar="A.B=V", autocompletion=complete.settings, help="Override one setting; repeat for more."
    ),
    json: str | None = typer.Option(None, "--json", metavar="FILE", help="Write JSON to FILE, or to stdout for -."),
    split: bool = typer.Option(False, "--split", help="Split what is off into parts, at every minibatch of a step."),
    strict: bool = typer.Option(False, "--strict", help="Refuse a recipe with parts that cannot act."),
) -> None:
    """Measure a recipe exactly in the simulator: error, bias and variance of its update."""
    output.check_target(json)
    with shown("measure"):
        result = api.measure(recipe, set_, split=split, strict=strict)
    output.show(result, json)
