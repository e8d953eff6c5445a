"""Where along an axis an answer changes: bisection in the logarithm, for many searches at once.

Searches stand side by side, so that what each asks next can be computed together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Ask = Callable[[Mapping[str, float]], Mapping[str, bool]]
"""From a point for each of some searches, by name, to whether what is looked for holds there."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What a search moves along.

    Args:
        low, high: the range that is searched, both above 0.
        ratio: the border is known once it lies between two points no further apart than this factor.
        whole: whether points are whole numbers.
    """

    low: float
    high: float
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
    """What a search found.

    Args:
        asked: every point that was looked at, ascending, and whether it held there.
        below, above: the two neighbouring points between which the answer changes; None where it is the same at both
            ends of the range.
    """

    asked: Mapping[float, bool]
    below: float | None
    above: float | None

    def json(self) -> dict[str, Any]:
        """As plain numbers."""
        found = None if self.below is None or self.above is None else math.sqrt(self.below * self.above)
        asked = [{"at": point, "holds": held} for point, held in self.asked.items()]
        return {"border": found, "below": self.below, "above": self.above, "asked": asked}


def borders(axes: Mapping[str, Axis], ask: Ask) -> dict[str, Border]:
    """Search all axes, a round at a time: both ends first, then the middle of what is left of each.

    What holds is taken to change once between the ends; that it does is seen only at the points that are asked.

    Example:
        >>> found = borders({"x": Axis(low=1, high=100)}, lambda points: {name: x > 30 for name, x in points.items()})
        >>> found["x"].below, found["x"].above
        (24.0, 32.0)
    """
    asked: dict[str, dict[float, bool]] = {name: {} for name in axes}
    for end in ("low", "high"):
        points = {name: float(getattr(axis, end)) for name, axis in axes.items()}
        for name, held in ask(points).items():
            asked[name][points[name]] = held
    while points := {name: x for name, axis in axes.items() if (x := _next(axis, asked[name])) is not None}:
        for name, held in ask(points).items():
            asked[name][points[name]] = held
    return {name: _border(dict(sorted(points.items()))) for name, points in asked.items()}


def _next(axis: Axis, asked: Mapping[float, bool]) -> float | None:
    """The next point of a search, None where it is over."""
    found = _border(dict(sorted(asked.items())))
    if found.below is None or found.above is None:
        return None
    point = axis.between(found.below, found.above)
    return None if point in asked else point


def _border(asked: Mapping[float, bool]) -> Border:
    """The first change along the points, if any."""
    points = list(asked)
    for low, high in pairwise(points):
        if asked[low] != asked[high]:
            return Border(asked=asked, below=low, above=high)
    return Border(asked=asked, below=None, above=None)
