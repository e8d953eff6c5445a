"""How far answers are from the golden vectors, number by number.

Two numbers agree where |got - expected| <= tolerance · max(1, |expected|). Two infinities of one sign agree, and so do
two NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .answer import SECTIONS, Answers, Path_, Place, expected_leaves, numbers


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The number of a leaf that is furthest from what was expected.

    Args:
        path: the names that lead there.
        place: its indices: response and token of `[B, T]`, response of `[B]`, nothing of a single number.
        got: of the answers.
        expected: of the vectors.
        excess: how many times the tolerance they are apart; infinite where one of them is no finite number.
    """

    path: Path_
    place: Place
    got: float
    expected: float
    excess: float

    def __str__(self) -> str:
        section, *names = self.path
        of = SECTIONS[section][:-1]
        at = [f"{word} {name}" for word, name in zip(of, names, strict=False)]
        indices = ("group", "response") if section == "advantages" else ("response", "token")
        at += [f"{word} {index}" for word, index in zip(indices, self.place, strict=False) if "receipts" not in names]
        return f"{' '.join(names[len(of) :])} of {', '.join(at)}: got {self.got:.10g}, expected {self.expected:.10g}"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One leaf of the answers beside that of the vectors.

    Args:
        path: the names that lead there.
        numbers: how many there are.
        worst: the one that is furthest apart, None where all agree.
    """

    path: Path_
    numbers: int
    worst: Difference | None

    @property
    def subject(self) -> str:
        """The method, term, metric or rule that it is about."""
        section, *names = self.path
        return names[-1] if section == "metrics" else names[0]

    @property
    def output(self) -> str:
        """What of it: value, weight, gradient, loss, receipts, advantage or metric."""
        return "metric" if self.path[0] == "metrics" else self.path[3]

    @property
    def case(self) -> str:
        """The case or group that it is about."""
        return self.path[1] if self.path[0] == "metrics" else self.path[2]


def compare(answers: Answers, vectors: Mapping[str, Any]) -> list[Compared]:
    """Every leaf that is answered, in the order of the vectors."""
    tree = vectors["expected"]
    return [
        compared(path, answers.leaves[path], expected, tolerance_at(tree, path))
        for path, expected in expected_leaves(tree)
        if path in answers.leaves
    ]


def compared(path: Path_, got: Any, expected: Any, tolerance: float) -> Compared:
    """One leaf beside another of the same shape.

    Example:
        >>> compared(("metrics", "long", "kl"), 0.25, 0.5, 1e-7).worst.excess > 1e6
        True
    """
    pairs = [(place, one, other) for (place, one), (_, other) in zip(numbers(got), numbers(expected), strict=True)]
    far = [(excess(one, other, tolerance), place, one, other) for place, one, other in pairs]
    worst = max(far, key=lambda each: each[0])
    found = None
    if worst[0] > 1:
        apart, place, one, other = worst
        found = Difference(path=path, place=place, got=one, expected=other, excess=apart)
    return Compared(path=path, numbers=len(pairs), worst=found)


def excess(got: float, expected: float, tolerance: float) -> float:
    """How many times the tolerance two numbers are apart.

    Example:
        >>> excess(2.0, 1.0, 0.5), excess(math.inf, math.inf, 0.5), excess(math.nan, 1.0, 0.5)
        (2.0, 0.0, inf)
    """
    if got == expected or (math.isnan(got) and math.isnan(expected)):
        return 0.0
    apart = abs(got - expected) / max(1.0, abs(expected)) / tolerance
    return apart if math.isfinite(apart) else math.inf


def tolerance_at(tree: Mapping[str, Any], path: Path_) -> float:
    """The tolerance of the entry that a leaf belongs to."""
    found = math.nan
    for key in path:
        found = tree.get("tolerance", found)
        tree = tree[key] if isinstance(tree[key], Mapping) else {}
    return float(found)


def furthest(rows: Sequence[Compared]) -> Difference | None:
    """The largest difference of all, in tolerances; None where all agree."""
    worst = [row.worst for row in rows if row.worst is not None]
    return max(worst, key=lambda each: each.excess, default=None)
