"""Recipes as they are once defaults and bases are filled in: listed, resolved, compared. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .overrides import laid, named, tables
from .results import Listing, listed

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from firstorder.core.method.recipe import Recipe

    from .overrides import Overrides, Source

DESCRIPTION = ("about.name", "about.summary", "about.source")  # which are no settings

NO_RATIO, OLD, CORRECTED = "no ratio", "ratio theta/old", "ratio theta/old, and a factor or a rejection of old/mu"
MU = "ratio theta/mu"
R2, R3 = "routing replay, R2: the training engine's experts", "routing replay, R3: the inference engine's experts"
NOT_RUN = "listed and not run"
FAMILIES = (NO_RATIO, OLD, CORRECTED, MU, R2, R3, NOT_RUN)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A shipped recipe in a line; both scopes are None where the method does not fit the form."""

    name: str
    family: str
    scope: str | None
    weight_scope: str | None
    summary: str
    source: str


@dataclass(frozen=True, repr=False)
class RecipesResult(Listing):
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
        """A table for each family, a line a recipe."""
        from rich.text import Text

        named = max(len(row.name) for row in self.rows)
        for family in FAMILIES:
            lines = [
                (row.name.ljust(named), (row.scope or "not run").ljust(8), row.summary)
                for row in self.rows
                if row.family == family
            ]
            if lines:
                yield listed([("recipe", None), ("scope", None), ("summary", None)], lines, title=family)
                yield Text()
        yield Text(f"{len(self)} recipes; `firstorder recipes NAME` prints one in full", style="dim")


@dataclass(frozen=True, kw_only=True, repr=False)
class Difference(Listing):
    """The settings in which two recipes differ.

    Args:
        one: the first recipe.
        other: the second.
        pairs: the value in each, by dotted key; None where a key is unset.
    """

    one: str
    other: str
    pairs: Mapping[str, tuple[Any, Any]]

    def blocks(self) -> Iterator[Table | Text]:
        """A line for each setting: its value in the one and in the other."""
        from rich.text import Text

        from firstorder.core.settings.toml import literal

        if not self.pairs:
            yield Text(f"{self.one} and {self.other} have the same settings", no_wrap=True)
            return
        said = [
            (key, *("unset" if value is None else literal(value) for value in pair)) for key, pair in self.pairs.items()
        ]
        yield listed([("key", None), (self.one, None), (self.other, None)], said)


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
            Listed(
                name=name,
                family=family(recipe),
                scope=scopes[0],
                weight_scope=scopes[1],
                summary=about.summary,
                source=about.source,
            )
        )
    return rows


def family(recipe: Recipe) -> str:
    """What sets a method apart most: whose experts it replays, else the policies whose ratio weighs a token.

    Example:
        >>> from firstorder.core.method.recipe import Recipe
        >>> family(Recipe(ratio={"of": "theta/old"}))
        'ratio theta/old'
    """
    if recipe.about.unsupported:
        return NOT_RUN
    if recipe.router_replay.mode != "disabled":
        return {"R2": R2, "R3": R3}[recipe.router_replay.mode]
    correction, rejection = recipe.compared("correction.kind"), recipe.compared("rejection.kind")
    if "theta/mu" in (recipe.ratio.of, correction if recipe.ratio.of == "none" else None):
        return MU
    if recipe.ratio.of == "none":
        return NO_RATIO
    return CORRECTED if "old/mu" in (correction, rejection) else OLD


def compared(one: Source, other: Source) -> Difference:
    """The settings in which two recipes differ, as a value that prints; raises as `diff` does."""
    return Difference(one=_titled(one), other=_titled(other), pairs=diff(one, other))


def _titled(recipe: Source) -> str:
    """A recipe as it was given: the name or the path, or the name of an object."""
    return named(recipe) if hasattr(recipe, "about") else str(recipe)


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
