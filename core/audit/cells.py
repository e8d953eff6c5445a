"""Means over the tokens of a cell (a range of positions, a turn, a step), with intervals clustered by response.

A mean is a ratio of sums over responses, r = Σ x_i / Σ n_i, and

    Var r = B / (B - 1) Σ (x_i - r n_i)² / (Σ n_i)²

so a cell needs no more than Σ n, Σ x, Σ n², Σ n x, Σ x² and B, the responses that have tokens in it. They add up over
chunks.

Shapes: B responses, T positions, C cells, Q quantities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .clustered import interval
from .table import Estimate

Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""By name, what every token adds above and below, `[B, T]` each."""
SUMS = 6  # responses, n, x, nn, nx, xx


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The sums of cells.

    Args:
        keys: which they are, int64 `[C]`, ascending.
        names: of the quantities.
        sums: `[C, Q, 6]` float64.
    """

    keys: Tensor
    names: tuple[str, ...]
    sums: Tensor

    def count(self, name: str) -> Tensor:
        """Σ n of a quantity, `[C]`; 0 where there is none."""
        return self._of(name)[:, 1]

    def total(self, name: str) -> Tensor:
        """Σ x of a quantity, `[C]`."""
        return self._of(name)[:, 2]

    def responses(self, name: str) -> Tensor:
        """The responses that have it, `[C]`."""
        return self._of(name)[:, 0]

    def mean(self, name: str, sign: float = 1.0) -> list[Estimate | None]:
        """The mean of a quantity in each cell, None where no token has it."""
        return [ratio(each, sign) for each in self._of(name)]

    def _of(self, name: str) -> Tensor:
        if name not in self.names:
            return self.sums.new_zeros(len(self.keys), SUMS)
        return self.sums[:, self.names.index(name)]


def cells(key: Tensor, pairs: Pairs, where: Tensor) -> Cells:
    """The cells of a chunk.

    Args:
        key: of every token, int64 `[B, T]`.
        pairs: what is averaged.
        where: the tokens that count, bool `[B, T]`.
    """
    keys, place = torch.unique(key[where], return_inverse=True)
    rows = torch.arange(len(key))[:, None].expand_as(key)[where]
    at, size = rows * len(keys) + place, len(key) * len(keys)

    def per_response(x: Tensor) -> Tensor:
        return torch.bincount(at, weights=x[where].double(), minlength=size).reshape(len(key), len(keys))

    each = [(per_response(n), per_response(x)) for x, n in pairs.values()]
    return dense(keys, tuple(pairs), *(torch.stack(part, -1) for part in zip(*each, strict=True)))


def dense(keys: Tensor, names: tuple[str, ...], n: Tensor, x: Tensor) -> Cells:
    """Cells from what every response adds to each, n and x `[B, C, Q]` float64."""
    there = (n != 0).to(n)
    return Cells(keys=keys, names=names, sums=torch.stack([there, n, x, n * n, n * x, x * x], -1).sum(0))


def merged(a: Cells, b: Cells) -> Cells:
    """The cells of two chunks together."""
    names = tuple(dict.fromkeys((*a.names, *b.names)))
    keys, place = torch.unique(torch.cat([a.keys, b.keys]), return_inverse=True)
    sums = torch.cat([_widened(a, names), _widened(b, names)])
    return Cells(keys=keys, names=names, sums=sums.new_zeros(len(keys), *sums.shape[1:]).index_add(0, place, sums))


def grouped(of: Cells, keys: Tensor) -> Cells:
    """Cells put together that have the same new key; a response may be in one cell only of those of a key."""
    found, place = torch.unique(keys, return_inverse=True)
    sums = of.sums.new_zeros(len(found), *of.sums.shape[1:]).index_add(0, place, of.sums)
    return Cells(keys=found, names=of.names, sums=sums)


def ratio(sums: Tensor, sign: float = 1.0) -> Estimate | None:
    """Σ x / Σ n from the six sums `[6]`, None where n is 0."""
    responses, n, x, nn, nx, xx = sums.tolist()
    if not n:
        return None
    r = x / n
    spread = max(xx - 2 * r * nx + r * r * nn, 0.0)
    variance = spread / n / n * responses / (responses - 1) if responses > 1 else 0.0
    return interval(sign * r, variance, int(responses))


def _widened(of: Cells, names: tuple[str, ...]) -> Tensor:
    if of.names == names:
        return of.sums
    at = torch.tensor([names.index(name) for name in of.names])
    return of.sums.new_zeros(len(of.keys), len(names), SUMS).index_copy(1, at, of.sums)
