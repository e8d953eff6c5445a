"""A recipe and its backend sections, from a name or file and dotted overrides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstorder.core.recipe import Recipe
    from firstorder.sim.config import Sim


def compose(name: str, assignments: list[str]) -> tuple[Recipe, Sim]:
    """The recipe and the `[sim]` section, both validated.

    Raises:
        ConfigError: anything unknown, out of range or contradictory.
    """
    from firstorder.core.errors import ConfigError
    from firstorder.core.recipe import Recipe
    from firstorder.core.toml import build, nearest, override, read
    from firstorder.sim.config import Sim

    tree = override(read(name), assignments)
    sections = [*Recipe.model_fields, "sim"]
    for key, value in tree.items():
        if key not in sections:
            raise ConfigError(f"unknown section {key!r}; {nearest(key, sections)}valid sections: {', '.join(sections)}")
        if not isinstance(value, dict):
            raise ConfigError(f"{key!r} must be a section, got {value!r}")
    sim = overlay(Sim().model_dump(), tree.pop("sim", {}))
    return build(Recipe, tree), build(Sim, sim, "sim")


def overlay(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given` over `base`, table by table, so that one key of a table leaves the others at their defaults."""
    merged = dict(base)
    for key, value in given.items():
        inner = merged.get(key)
        merged[key] = overlay(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
