"""A recipe and its backend sections, from a name or file and dotted overrides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstorder.backends.torchtitan.config import Torchtitan
    from firstorder.backends.vllm.config import Vllm
    from firstorder.core.recipe import Recipe
    from firstorder.sim.config import Sim

BACKENDS = ("sim", "torchtitan", "vllm")  # sections that a recipe file may hold beside the recipe's own


def compose(name: str, assignments: list[str]) -> tuple[Recipe, Sim]:
    """The recipe and the `[sim]` section, both validated.

    Raises:
        ConfigError: anything unknown, out of range or contradictory.
    """
    from firstorder.core.toml import build
    from firstorder.sim.config import Sim

    recipe, sections = split(name, assignments)
    return recipe, build(Sim, overlay(Sim().model_dump(), sections["sim"]), "sim")


def compose_engines(name: str, assignments: list[str]) -> tuple[Recipe, Torchtitan, Vllm]:
    """The recipe, the `[torchtitan]` and the `[vllm]` section, all validated.

    Raises:
        ConfigError: anything unknown, out of range or contradictory.
    """
    from firstorder.backends.torchtitan.config import Torchtitan
    from firstorder.backends.vllm.config import Vllm
    from firstorder.core.toml import build

    recipe, sections = split(name, assignments)
    return recipe, build(Torchtitan, sections["torchtitan"], "torchtitan"), build(Vllm, sections["vllm"], "vllm")


def split(name: str, assignments: list[str]) -> tuple[Recipe, dict[str, dict[str, Any]]]:
    """The validated recipe, and the tables of the backend sections as given.

    Raises:
        ConfigError: an unknown section, or a recipe that is not valid.
    """
    from firstorder.core.errors import ConfigError
    from firstorder.core.recipe import Recipe
    from firstorder.core.toml import build, nearest, override, read

    tree = override(read(name), assignments)
    sections = [*Recipe.model_fields, *BACKENDS]
    for key, value in tree.items():
        if key not in sections:
            raise ConfigError(f"unknown section {key!r}; {nearest(key, sections)}valid sections: {', '.join(sections)}")
        if not isinstance(value, dict):
            raise ConfigError(f"{key!r} must be a section, got {value!r}")
    given = {backend: tree.pop(backend, {}) for backend in BACKENDS}
    return build(Recipe, tree), given


def overlay(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`given` over `base`, table by table, so that one key of a table leaves the others at their defaults."""
    merged = dict(base)
    for key, value in given.items():
        inner = merged.get(key)
        merged[key] = overlay(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
