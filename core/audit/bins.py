"""Bins of positive numbers that are equally wide in their logarithm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LogBins:
    """Bins between powers of two, one more for all below them and one for all above.

    Args:
        lowest: exponent of the lowest border.
        highest: of the highest.
        per_octave: bins between a power and the next.

    Example:
        >>> quarters = LogBins(lowest=-1, highest=1, per_octave=2)
        >>> quarters.place(torch.tensor([0.0, 0.49, 0.5, 1.0, 1.99, 2.0])).tolist()
        [0, 0, 1, 3, 4, 5]
        >>> [quarters.border(b) for b in (1, 3, 5)]
        [0.5, 1.0, 2.0]
    """

    lowest: int
    highest: int
    per_octave: int

    @property
    def count(self) -> int:
        """Of bins, the outer two included."""
        return (self.highest - self.lowest) * self.per_octave + 2

    @property
    def width(self) -> float:
        """A bin's upper border over its lower one."""
        return float(2.0 ** (1 / self.per_octave))

    def border(self, place: int) -> float:
        """The lower border of a bin but the first."""
        return float(2.0 ** (self.lowest + (place - 1) / self.per_octave))

    def place(self, x: Tensor) -> Tensor:
        """The bin of each number, int64; 0 for what is below all borders, 0 itself included."""
        steps = (x.clamp(min=2.0 ** (self.lowest - 1)).log2() - self.lowest) * self.per_octave
        return steps.floor().clamp(-1, self.count - 2).long() + 1

    def sums(self, rows: Tensor, place: Tensor, weights: Tensor, size: int) -> Tensor:
        """Σ of weights by row and bin, float64 `[size, count]`."""
        total = torch.bincount(rows * self.count + place, weights=weights.double(), minlength=size * self.count)
        return total.reshape(size, self.count)
