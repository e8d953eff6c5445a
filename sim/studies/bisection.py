"""Where along an axis an answer changes: bisection in the logarithm, for many searches at once.

Searches stand side by side, so that what each asks next can be computed together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

Ask = Callable[[Mapping[str, float]], Mapping[str, bool]]
"""From a point for each of some searches, by name, to whether what is looked for holds there."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What a search moves along.

    Args:
        low, high: the range that is searched, both above 0.
        ratio: a border is known once it lies between two points no further apart than this factor.
        whole: whether points are whole numbers.
        inside: a point between them that is asked from the outset, where what is looked for may hold inside alone.
    """

    low: float
    high: float
    inside: float | None = None
    ratio: float = 1.5
    whole: bool = False

    def between(self, low: float, high: float) -> float | None:
        """The next point to look at, the geometric mean; None where the two are close enough."""
        if high <= low * self.ratio * (1 + 1e-9):
            return None
        middle = math.sqrt(low * high)
        if not self.whole:
            return float(f"{middle:.2g}")
        point = float(round(middle))
        return point if low < point < high else None


@dataclass(frozen=True, kw_only=True)
class Border:
    """Two neighbouring points between which the answer changes, and what it is at the second."""

    below: float
    above: float
    holds_above: bool

    @property
    def at(self) -> float:
        """Their geometric mean."""
        return math.sqrt(self.below * self.above)


@dataclass(frozen=True, kw_only=True)
class Search:
    """What was found along an axis.

    Args:
        asked: every point that was looked at, ascending, and whether it held there.
    """

    asked: Mapping[float, bool]

    @property
    def borders(self) -> list[Border]:
        """Where the answer changes, ascending; none where it is the same at every point."""
        return [
            Border(below=low, above=high, holds_above=self.asked[high])
            for low, high in pairwise(self.asked)
            if self.asked[low] != self.asked[high]
        ]


def searched(axes: Mapping[str, Axis], ask: Ask) -> dict[str, Search]:
    """Search all axes, a round at a time: both ends and the point inside first, then the middle of what is left.

    Between two points of the same answer nothing is looked for: a finding that comes and goes there is not seen.

    Example:
        >>> found = searched({"x": Axis(low=1, high=100)}, lambda points: {name: x > 30 for name, x in points.items()})
        >>> found["x"].borders[0].below
        24.0
    """
    asked: dict[str, dict[float, bool]] = {name: {} for name in axes}

    def put(points: Mapping[str, float]) -> None:
        for name, held in ask(points).items():
            asked[name][points[name]] = held

    put({name: float(axis.low) for name, axis in axes.items()})
    put({name: float(axis.high) for name, axis in axes.items()})
    inside = {name: float(axis.inside) for name, axis in axes.items() if axis.inside is not None}
    if inside := {name: x for name, x in inside.items() if x not in asked[name]}:
        put(inside)
    while points := {name: x for name, axis in axes.items() if (x := _next(axis, asked[name])) is not None}:
        put(points)
    return {name: Search(asked=dict(sorted(points.items()))) for name, points in asked.items()}


def _next(axis: Axis, asked: Mapping[float, bool]) -> float | None:
    """The next point of a search, in the first border that is not known closely enough; None where it is over."""
    for border in Search(asked=dict(sorted(asked.items()))).borders:
        point = axis.between(border.below, border.above)
        if point is not None and point not in asked:
            return point
    return None
