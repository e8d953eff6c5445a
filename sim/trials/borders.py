"""Borders beyond which a finding holds, as runs have found them, and where a recipe lies that is too long to be tried.

A border is known at one or more discrepancies. Between and beyond them it is a straight line in logarithms:

    log X*(KL) = log X_1 + (log KL - log KL_1) · (log X_2 - log X_1) / (log KL_2 - log KL_1)

through the two discrepancies around the one asked for, or the two outermost ones beside it. One that is known at a
single discrepancy holds for larger ones alone: engines that are further apart do not make training safer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from firstorder.core.errors import DataError
from firstorder.core.method.recipe import Recipe
from firstorder.core.runs.files import shipped_text

from .neighbours import corrected, correction

SHIPPED = Path(__file__).with_name("borders.json")
Axis = Literal["horizon", "minibatches"]


@dataclass(frozen=True, kw_only=True)
class Cause:
    """What a recipe lacks where a finding is about it: whether it does, in words, and the change that would mend it."""

    lacks: Callable[[Recipe], bool]
    what: str
    remedy: Callable[[Recipe], str]


FINDINGS: Mapping[str, Cause] = {
    "collapse": Cause(
        lacks=lambda recipe: not corrected(recipe),
        what="no train-infer importance sampling",
        remedy=lambda recipe: correction(recipe)[0],
    ),
    "clip": Cause(
        lacks=lambda recipe: recipe.clip.kind == "none" and recipe.schedule.minibatches > 1,
        what="no clip on stale updates",
        remedy=lambda recipe: "clip.kind = minirl",
    ),
}
"""The findings that say that a recipe is unstable, by the name of the search that found their borders."""


@dataclass(frozen=True, kw_only=True)
class Border:
    """Between two points of an axis a finding began to hold.

    Args:
        finding: a key of `FINDINGS`.
        axis: what was moved.
        base: the condition that the search started from, in words.
        kl: KL(μ_old ‖ π_old) there, nats a response token.
        low: the largest point at which it did not hold.
        high: the smallest at which it did.
    """

    finding: str
    axis: Axis
    base: str
    kl: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Crossed:
    """A border beyond which a recipe lies.

    Args:
        finding, axis: whose.
        cause, remedy: what the recipe lacks, and the change that would mend it.
        border: where it is at the recipe's discrepancy.
        at: where the recipe is.
        known: the borders that it was drawn through, one or two.
    """

    finding: str
    axis: Axis
    cause: str
    remedy: str
    border: float
    at: float
    known: tuple[Border, ...]

    def json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"known": [asdict(each) for each in self.known]}


def crossed(borders: Sequence[Border], recipe: Recipe, *, horizon: int, kl: float) -> list[Crossed]:
    """The borders beyond which a recipe lies, or on which.

    Args:
        borders: from `read`.
        recipe: its parts and its N.
        horizon: tokens of its responses, T.
        kl: of the engines that it will meet, nats a response token.
    """
    place: dict[Axis, float] = {"horizon": horizon, "minibatches": recipe.schedule.minibatches}
    found = []
    for finding, axis in dict.fromkeys((each.finding, each.axis) for each in borders):
        cause = FINDINGS[finding]
        mine = [each for each in borders if (each.finding, each.axis) == (finding, axis)]
        where, known = line(mine, kl)
        if cause.lacks(recipe) and place[axis] >= where:
            found.append(
                Crossed(
                    finding=finding,
                    axis=axis,
                    cause=cause.what,
                    remedy=cause.remedy(recipe),
                    border=where,
                    at=place[axis],
                    known=known,
                )
            )
    return found


def line(borders: Sequence[Border], kl: float) -> tuple[float, tuple[Border, ...]]:
    """Where the border of one finding along one axis is at a discrepancy, and what it was drawn through; infinite where
    it is known at a larger discrepancy alone."""
    ordered = sorted(borders, key=lambda each: each.kl)
    if len(ordered) == 1:
        (only,) = ordered
        return (only.high if kl >= only.kl else math.inf), (only,)
    right = min(max(1, sum(each.kl <= kl for each in ordered)), len(ordered) - 1)
    first, second = ordered[right - 1], ordered[right]
    slope = math.log(second.high / first.high) / math.log(second.kl / first.kl)
    return first.high * (kl / first.kl) ** slope, (first, second)


def read(file: Path = SHIPPED) -> tuple[Border, ...]:
    """The borders of a JSON file.

    Raises:
        DataError: it cannot be read, or is damaged as `parse` says.
    """
    return parse(shipped_text(file, "borders"), str(file))


def parse(text: str, where: str) -> tuple[Border, ...]:
    """The borders of JSON text, `{"borders": [{"finding": ..., ...}]}`; `where` it comes from is named in errors.

    Raises:
        DataError: it is no such object, or a border has a field too many, too few, or out of its range.
    """
    try:
        found = tuple(Border(**row) for row in json.loads(text)["borders"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where} holds no borders ({error}); install firstorder again") from None
    for number, each in enumerate(found):
        wrong = _wrong(each, found[:number])
        if wrong:
            raise DataError(f"{where}: border {number} {wrong}; install firstorder again")
    return found


def _wrong(border: Border, before: Sequence[Border]) -> str:
    """What is wrong with a border that was read after others; nothing if it is sound."""
    if border.finding not in FINDINGS:
        return f"is of the finding {border.finding!r}, and known are {', '.join(FINDINGS)}"
    if border.axis not in get_args(Axis):
        return f"is along {border.axis!r}, and known are {', '.join(get_args(Axis))}"
    for name in ("kl", "low", "high"):
        value = getattr(border, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            return f"has {name} = {value!r}, which must be a positive number"
    if border.low >= border.high:
        return f"has low = {border.low:g}, which must be below high = {border.high:g}"
    if any((one.finding, one.axis, one.kl) == (border.finding, border.axis, border.kl) for one in before):
        return f"is the second of {border.finding} along {border.axis} at kl = {border.kl:g}"
    return ""
