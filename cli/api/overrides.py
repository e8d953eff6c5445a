"""How settings are given: as `a.b=value` on the command line; as keywords, tables and dotted keys in Python."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstorder.core.method.recipe import Recipe
    from firstorder.core.settings.overrides import Pairs
    from firstorder.core.settings.toml import Tree

    Source = str | os.PathLike[str] | Recipe
    """A recipe: its shipped name, the TOML file that holds it, or the object."""

    Overrides = Mapping[str, Any] | Iterable[str | tuple[str, Any]]
    """Settings by key, or `a.b=value` assignments."""


def laid(overrides: Overrides = (), keywords: Mapping[str, Any] | None = None, *, simulated: bool = True) -> Pairs:
    """Settings in the order in which they are laid over a recipe: `overrides` first, then keywords.

    Args:
        overrides: `{"clip.high": 0.3}`, `{"clip": {"high": 0.3}}`, or `["clip.high=0.3"]`, whose values are TOML.
        keywords: `staleness=2`, a key of `[sim]`, or `clip={"high": 0.3}`, keys of a section.
        simulated: whether keywords may be keys of `[sim]`.

    Raises:
        ConfigError: an assignment that is none, or a keyword that names neither a section nor a key of `[sim]`.

    Example:
        >>> laid(["clip.high=0.3"], {"staleness": 2, "clip": {"low": 0.1}})
        [('clip.high', 0.3), ('sim.staleness', 2), ('clip.low', 0.1)]
    """
    from firstorder.core.settings.overrides import pairs
    from firstorder.core.settings.toml import assignment

    if isinstance(overrides, str):
        overrides = [overrides]
    if isinstance(overrides, Mapping):
        settings = pairs(overrides)
    else:
        settings = [assignment(each) if isinstance(each, str) else each for each in overrides]
    return settings + (pairs(placed(keywords, simulated=simulated)) if keywords else [])


def placed(keywords: Mapping[str, Any], *, simulated: bool) -> dict[str, Any]:
    """Keywords under the keys that they stand for: a key of `[sim]` stands in its section."""
    from firstorder.core.errors import ConfigError
    from firstorder.core.method.recipe import Recipe
    from firstorder.core.settings.toml import nearest
    from firstorder.sim.config import Sim

    from .compose import ENGINES, SIM

    own = set(Sim.model_fields) if simulated else set()
    sections = [*Recipe.model_fields, *SIM, *ENGINES]
    settings = {}
    for name, value in keywords.items():
        if name not in own and name not in sections:
            also = " or a key of [sim]" if simulated else ""
            hint = nearest(name, [*sections, *sorted(own)])
            raise ConfigError(f"no setting {name!r}; {hint}a keyword is a section{also}: {', '.join(sections)}")
        settings[f"sim.{name}" if name in own else name] = value
    return settings


def tables(recipe: Source) -> Tree:
    """The tables of a recipe that is given by name, by file or as an object.

    Raises:
        ConfigError: no such recipe or file, or not TOML.
    """
    from firstorder.core.method.recipe import Recipe
    from firstorder.core.settings.toml import read

    return recipe.model_dump(exclude_unset=True) if isinstance(recipe, Recipe) else read(str(recipe))


def named(recipe: Source) -> str:
    """What a folder of this recipe's is called unless given: its name, or that of its file."""
    from pathlib import Path

    from firstorder.core.method.recipe import Recipe

    return recipe.about.name if isinstance(recipe, Recipe) else Path(recipe).stem
