"""What a logged name means, and sums that any backend can add over batches and ranks before they are divided."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

Moments = dict[str, tuple[Tensor, Tensor]]
"""By name, a numerator and a denominator of the same shape `[...]`."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What a logged name means.

    Args:
        formula: how it is computed, or a sentence where there is no formula.
        unit: of its values.
        source: who logs it under which name, or where it is defined.
        alarm: the level above which the source, and nobody else, speaks of danger.
    """

    formula: str
    unit: str
    source: str
    alarm: float | None = None


def add(a: Moments, b: Moments) -> Moments:
    """Moments of two batches together."""
    shared = {name: (a[name][0] + b[name][0], a[name][1] + b[name][1]) for name in a.keys() & b.keys()}
    return a | b | shared


def means(sums: Moments) -> dict[str, Tensor]:
    """Numerators over denominators."""
    return {name: above / below for name, (above, below) in sums.items()}
