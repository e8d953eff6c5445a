"""`firstorder recipes`: what ships in the package."""

from __future__ import annotations

import typer


def recipes(name: str | None = typer.Argument(None, help="Print this recipe as TOML.")) -> None:
    """List the shipped recipes, or print one as TOML."""
    from firstorder.core.errors import ConfigError
    from firstorder.core.method.recipe import Recipe
    from firstorder.core.settings.toml import build, nearest, read, shipped, source

    if name is not None:
        if name not in shipped():
            raise ConfigError(f"no shipped recipe {name!r}; {nearest(name, shipped())}`firstorder recipes` lists them")
        typer.echo(source(name), nl=False)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in ("recipe", "scope", "summary", "source"):
        table.add_column(column)
    for each in shipped():
        recipe = build(Recipe, read(each))
        scope = "not run" if recipe.about.unsupported else recipe.scope
        table.add_row(each, scope, recipe.about.summary, recipe.about.source)
    Console().print(table)
