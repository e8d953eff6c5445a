"""Recipes as they are once defaults and bases are filled in: listed, resolved, compared. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .overrides import laid, tables
from .results import Printed

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from firstorder.core.method.recipe import Recipe

    from .overrides import Overrides, Source

DESCRIPTION = ("about.name", "about.summary", "about.source")  # which are no settings


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A shipped recipe in a line; both scopes are None where the method does not fit the form."""

    name: str
    scope: str | None
    weight_scope: str | None
    summary: str
    source: str


@dataclass(frozen=True, repr=False)
class RecipesResult(Printed):
    """The shipped recipes, by name."""

    rows: tuple[Listed, ...]

    @property
    def names(self) -> list[str]:
        """What `recipe`, `measure` and the others take."""
        return [row.name for row in self.rows]

    def __iter__(self) -> Iterator[Listed]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def blocks(self) -> Iterator[Table | Text]:
        """A row for each recipe."""
        from rich.table import Table

        shown = Table(box=None, header_style="bold")
        for column in ("recipe", "scope", "summary", "source"):
            shown.add_column(column)
        for row in self.rows:
            shown.add_row(row.name, row.scope or "not run", row.summary, row.source)
        yield shown


def recipe(recipe: Source, overrides: Overrides = (), **sections: Any) -> Recipe:
    """A recipe as a value, checked.

    Args:
        recipe: a shipped name, a TOML file, or a recipe; sections of a backend are left out.
        overrides: settings by dotted key, `{"clip.high": 0.3}`.
        sections: keys of a section, `clip={"high": 0.3}`.

    Raises:
        ConfigError: there is none, or it is not valid.
    """
    from firstorder.core.settings.toml import assign

    from .compose import split

    return split(assign(tables(recipe), laid(overrides, sections, simulated=False)))[0]


def recipes() -> RecipesResult:
    """The shipped recipes: name, scope, summary and source of each."""
    return RecipesResult(tuple(table()))


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
