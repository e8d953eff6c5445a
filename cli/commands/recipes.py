"""`firstorder recipes`: what ships in the package, and what a recipe is once it is resolved."""

from __future__ import annotations

import typer

from firstorder.cli import complete
from firstorder.cli.api import recipes as api


def recipes(
    name: str | None = typer.Argument(
        None, autocompletion=complete.recipes, help="Print this recipe, shipped or a file, in full as TOML."
    ),
    other: str | None = typer.Option(
        None, "--diff", autocompletion=complete.recipes, help="Print where the recipe and this one differ instead."
    ),
) -> None:
    """List the shipped recipes, or print one as TOML with its bases and defaults filled in."""
    from firstorder.core.errors import ConfigError
    from firstorder.core.settings.toml import dump

    if name is None:
        if other is not None:
            raise ConfigError("--diff compares two recipes, got one; give `firstorder recipes NAME --diff OTHER`")
        api.recipes().print()
    elif other is None:
        typer.echo(dump(api.resolve(name)), nl=False)
    else:
        api.compared(name, other).print()
