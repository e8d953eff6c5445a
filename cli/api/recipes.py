"""Recipes as they are once defaults and bases are filled in: listed, resolved, compared. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .overrides import Source

DESCRIPTION = ("about.name", "about.summary", "about.source")  # which are no settings


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A shipped recipe in a line; both scopes are None where the method does not fit the form."""

    name: str
    scope: str | None
    weight_scope: str | None
    summary: str
    source: str


def table() -> list[Listed]:
    """Every shipped recipe, by name."""
    from firstorder.core.method.recipe import Recipe
    from firstorder.core.settings.toml import build, read, shipped

    rows = []
    for name in shipped():
        recipe = build(Recipe, read(name))
        scopes = (None, None) if recipe.about.unsupported else (recipe.scope, recipe.weight_scope)
        about = recipe.about
        rows.append(
            Listed(name=name, scope=scopes[0], weight_scope=scopes[1], summary=about.summary, source=about.source)
        )
    return rows


def resolve(recipe: Source) -> dict[str, Any]:
    """A recipe in full, as nested tables: what its file and its bases say, defaults for the rest.

    Sections of a backend are as the files have them. Written as TOML it reads back to the same recipe.

    Args:
        recipe: a shipped name, a file, or a recipe.

    Raises:
        ConfigError: there is none, or it is not valid.
    """
    from .compose import split
    from .overrides import tables

    method, sections = split(tables(recipe))
    return method.model_dump() | {section: table for section, table in sections.items() if table}


def diff(recipe: Source, other: Source) -> dict[str, tuple[Any, Any]]:
    """The settings in which two resolved recipes differ, by dotted key: the one's and the other's, None where unset.

    What they are called and where they come from is no setting.

    Raises:
        ConfigError: as for `resolve`.
    """
    from firstorder.core.settings.toml import flat

    one, two = flat(resolve(recipe)), flat(resolve(other))
    differing = {key: (one.get(key), two.get(key)) for key in {**one, **two} if one.get(key) != two.get(key)}
    return {key: pair for key, pair in differing.items() if key not in DESCRIPTION}
