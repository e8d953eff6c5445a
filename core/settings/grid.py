"""Grids: axes of settings, and every combination of their values."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from firstorder.core.errors import ConfigError

from .overrides import pairs
from .toml import shown, value

Axes = dict[str, list[Any]]
"""Values by dotted key, in the order given."""

MOST = 100_000  # points of a grid

# read from the end: a quote or a list that is whole, or one character outside of any
TOKEN = re.compile(r""""[^"]*"|'[^']*'|\][^\[\]]*\[|[^"'\[\]]""")


def axes(given: Iterable[Any] | Mapping[str, Any]) -> Axes:
    """Axes from `a.b=v1,v2` assignments, whose values are TOML or else bare strings; or from lists of values by key.

    Raises:
        ConfigError: an axis without values, with an empty one, with a table for a value, or given twice.

    Example:
        >>> axes(["clip.high=0.2,0.3", "recipe=minirl,grpo"])
        {'clip.high': [0.2, 0.3], 'recipe': ['minirl', 'grpo']}
        >>> axes({"clip": {"high": (0.2, 0.3)}})
        {'clip.high': [0.2, 0.3]}
    """
    by_key: Axes = {}
    for key, values in map(_listed, pairs(given)) if isinstance(given, Mapping) else map(_parsed, given):
        if key in by_key:
            raise ConfigError(f"axis {key!r} is given twice; give all its values at once, as {key}=v1,v2")
        by_key[key] = values
    cells = math.prod(len(values) for values in by_key.values())
    if cells > MOST:
        raise ConfigError(f"the axes make {cells:,} points, more than {MOST:,}; give fewer values, or several grids")
    return by_key


def _listed(pair: tuple[str, Any]) -> tuple[str, list[Any]]:
    key, values = pair
    if not isinstance(values, list) or not values:
        raise ConfigError(f"axis {key!r} has no values, got {shown(values)}; give a list of them")
    return key, _single(key, values, shown(values))


def _parsed(assignment: str) -> tuple[str, list[Any]]:
    key, equals, text = (part.strip() for part in assignment.partition("="))
    if not equals or not all(key.split(".")):
        raise ConfigError(f"an axis is a.b=v1,v2, got {assignment!r}")
    pieces = [piece.strip() for piece in _split(text)]
    if not all(pieces):
        what = "has an empty value" if len(pieces) > 1 else "has no values"
        raise ConfigError(f"axis {key!r} {what}, got {assignment!r}; give {key}=v1,v2")
    return key, _single(key, [value(piece) for piece in pieces], repr(assignment))


def _single(key: str, values: list[Any], got: str) -> list[Any]:
    if any(isinstance(each, Mapping) for each in values):
        raise ConfigError(f"axis {key!r} takes single values, got a table in {got}; give an axis a key")
    return values


def _split(text: str) -> list[str]:
    """Text cut at each comma after which every quote and bracket that opens also closes."""
    reverse, pieces, start, place = text[::-1], [], 0, 0
    while token := TOKEN.match(reverse, place):
        if token[0] == ",":
            pieces.append(reverse[start:place][::-1])
            start = token.end()
        place = token.end()
    return [reverse[start:][::-1], *pieces[::-1]]


def check_distinct(key: str, values: Sequence[Any]) -> None:
    """Refuse an axis on which two values are one.

    Raises:
        ConfigError: naming the value.
    """
    for place, each in enumerate(values):
        if each in values[:place]:
            raise ConfigError(f"axis {key!r} holds {each!r} twice; name each value once")


def points(given: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination, the last axis running fastest.

    Example:
        >>> points({"a": [1, 2], "b": ["x", "y"]})[1]
        {'a': 1, 'b': 'y'}
    """
    return [dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())]


def titled(point: Mapping[str, Any]) -> str:
    """A point for people: `clip.high = 0.2, recipe = minirl`."""
    return ", ".join(f"{key} = {each}" for key, each in point.items())
