"""Configurations as an earlier version stored them, with the keys of today.

A key that did not exist yet did nothing, and does nothing at its default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from firstorder.core.errors import ConfigError
from firstorder.core.settings.section import Section
from firstorder.core.settings.toml import build, shown

from .recipe import Recipe

Tables = dict[str, Any]


def resolved(stored: Mapping[str, Any], sections: Mapping[str, type[Section]]) -> Tables:
    """A recipe and the sections beside it with every key of today; those that came later are at their defaults.

    Args:
        stored: nested tables, as `config.toml` holds them.
        sections: what stands beside the recipe, by name.

    Raises:
        ConfigError: a key or a value that is none today.

    Example:
        >>> resolved({"clip": {"kind": "ppo"}}, {})["terms"]["entropy"]
        0.0
    """
    recipe = {key: value for key, value in stored.items() if key not in sections}
    beside = {name: build(section, _table(stored.get(name, {})), name) for name, section in sections.items()}
    return build(Recipe, recipe).model_dump() | {name: section.model_dump() for name, section in beside.items()}


def resolved_each(stored: Any, read: Callable[[Mapping[str, Any]], Tables]) -> Tables:
    """Several configurations by name, each as `read` makes it.

    Raises:
        ConfigError: they are no tables, or as `read`.
    """
    return {name: read(_table(one)) for name, one in _table(stored).items()}


def _table(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"a section is a table, got {shown(value)}")
    return value
