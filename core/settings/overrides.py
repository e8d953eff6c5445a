"""Overrides as Python gives them: values at dotted keys, or tables within tables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from firstorder.core.errors import ConfigError

from .toml import shown

Pairs = list[tuple[str, Any]]
"""Dotted keys with their values, in the order in which they are laid over a tree (`toml.assign`)."""


def pairs(given: Mapping[str, Any], prefix: str = "") -> Pairs:
    """The dotted keys of tables within tables; a key may be dotted itself, and a section may be an object.

    Raises:
        ConfigError: a key that is no text, or with an empty part.

    Example:
        >>> pairs({"clip.high": 0.3, "sim": {"numerics": {"kind": "fp8"}}})
        [('clip.high', 0.3), ('sim.numerics.kind', 'fp8')]
    """
    dotted_pairs: Pairs = []
    for key, value in given.items():
        if not isinstance(key, str) or not all(part.strip() for part in key.split(".")):
            raise ConfigError(f"the key of an override is a.b, got {shown(key)}")
        table = value.model_dump() if isinstance(value, BaseModel) else value
        dotted = f"{prefix}{key}"
        dotted_pairs += pairs(table, f"{dotted}.") if isinstance(table, Mapping) else [(dotted, plain(table))]
    return dotted_pairs


def plain(value: Any) -> Any:
    """A value as TOML would have it: a scalar of numpy or torch is a number, a path a text, a sequence a list."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:
        return value.item()
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping, BaseModel)):
        return [plain(each) for each in value]
    return value
