"""Sharing out a difference among the parts that were swapped to make it: in one order, and over all orders.

Shapes: `...` any axes of what is shared out, a number or a vector.

v is known of every set of parts that are swapped. In one order each part adds what it changes after those before it,

    Δ_i(S) = v(S ∪ i) - v(S),      Σ_i Δ_i(those before i) = v(all) - v(none)

and the Shapley value is the mean of Δ_i over all orders, which adds up to the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, combinations
from math import factorial

import torch
from torch import Tensor

Swapped = frozenset[str]


def subsets(parts: Sequence[str]) -> list[Swapped]:
    """All sets of some parts, the smaller ones first."""
    sizes = range(len(parts) + 1)
    return [frozenset(chosen) for chosen in chain.from_iterable(combinations(parts, size) for size in sizes)]


def in_order(worth: Mapping[Swapped, Tensor], order: Sequence[str]) -> dict[str, Tensor]:
    """What each part adds in one order, `[...]` each.

    Args:
        worth: v of every set of the parts of `order`.
        order: the parts, as they are swapped.
    """
    before = [frozenset(order[:place]) for place in range(len(order))]
    return {part: worth[seen | {part}] - worth[seen] for part, seen in zip(order, before, strict=True)}


def changes(worth: Mapping[Swapped, Tensor], parts: Sequence[str], part: str) -> Tensor:
    """Δ of one part after every set of the others, in the order of `subsets`, `[2^(n-1), ...]`."""
    return torch.stack([worth[seen | {part}] - worth[seen] for seen in subsets(_others(parts, part))])


def shapley(worth: Mapping[Swapped, Tensor], parts: Sequence[str], part: str) -> Tensor:
    """The mean of what a part adds over all orders of n parts, `[...]`.

        φ_i = Σ_{S without i} |S|! (n - |S| - 1)! / n! · Δ_i(S)

    Source: Shapley, A value for n-person games (1953).
    """
    added, size = changes(worth, parts, part), len(parts)
    weights = [
        factorial(len(seen)) * factorial(size - len(seen) - 1) / factorial(size)
        for seen in subsets(_others(parts, part))
    ]
    return (torch.tensor(weights, dtype=added.dtype).view(-1, *[1] * (added.ndim - 1)) * added).sum(0)


def _others(parts: Sequence[str], part: str) -> list[str]:
    return [one for one in parts if one != part]
