"""Sums over walks of any length in log T products of small matrices, where every prompt has a few contexts of its own.

Shapes: b blocks (members x prompts), n contexts of a block, e of its contexts and endings, k kinds, T horizon.

A recursion over t does the same product T times. Where the contexts of a prompt lead only to one another its kernel is
a matrix P `[n, n]`, and sums over t are made of its powers by doubling, from m steps to 2m and to m + 1:

    S_m = Σ_{i+j=m-1} L^i X R^j         S_2m = L^m S_m + S_m R^m         S_{m+1} = L S_m + X R^m
    V_m = Σ_{i<m} d P^i                 V_2m = V_m + V_m P^m             V_{m+1} = d + V_m P

With L = P^T, R that of the kernel after an edge with every ending as a place that leads to itself, and
X = d_1 ⊗ B_{T+1}, S_T(c, c') = Σ_t d_t(c) B_{t+1}(c') is all that passes an edge from c to c'. Nothing is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COST = 6  # steps of a recursion that a row of a block is worth; measured (docs/benchmarks.md)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Contexts in blocks that lead only to themselves and to endings, a block for each prompt.

    Args:
        size: n; contexts x n to (x + 1) n - 1 are those of prompt x.
        place: int64 `[X, n, U]`, where each branch leads to within its block; endings are n, ..., n + E - 1.
        endings: E.
    """

    size: int
    place: Tensor
    endings: int

    @property
    def places(self) -> int:
        """e = n + E."""
        return self.size + self.endings

    def matrices(self, kernel: Tensor) -> Tensor:
        """The kernel `[M, S, U]` of every block, endings leading to themselves, `[b, e, e]`."""
        members, prompts = len(kernel), len(self.place)
        full = torch.zeros(members, prompts, self.places, self.places, dtype=torch.float64)
        full[..., : self.size, :].scatter_add_(
            3, self.place.expand(members, -1, -1, -1), kernel.view(members, *self.place.shape)
        )
        if self.endings:
            full[..., self.size :, self.size :] = torch.eye(self.endings, dtype=torch.float64)
        return full.flatten(0, 1)

    def on_branches(self, values: Tensor, members: int) -> Tensor:
        """Values `[b, k, n, e]` of pairs of places, of those that a branch joins, `[M, k, S, U]`."""
        apart = values.view(members, len(self.place), -1, self.size, self.places).transpose(1, 2)
        return apart.gather(4, self.place.expand(*apart.shape[:2], -1, -1, -1)).flatten(2, 3)


def blocks(place: Tensor, prompts: int, contexts: int, endings: int, horizon: int) -> Blocks | None:
    """The blocks of contexts, where there are such and doubling is faster than T steps; else None.

    Args:
        place: int64 `[S, U]`, contexts 0 to S - 1, then endings.
        prompts: X; those of prompt x are to be x S/X to (x + 1) S/X - 1.
        contexts: S.
        endings: E.
        horizon: T.
    """
    size, rest = divmod(contexts, prompts)
    if rest or horizon <= COST * size:
        return None
    inside, block = place < contexts, torch.arange(contexts)[:, None] // size
    if bool((inside & (place // size != block)).any()):
        return None
    local = torch.where(inside, place - block * size, size + place - contexts)
    return Blocks(size=size, place=local.view(prompts, size, -1), endings=endings)


def between(before: Tensor, after: Tensor, start: Tensor, worth: Tensor, horizon: int) -> Tensor:
    """Σ_t d_t(c) B_{t+1}(c') of every two places of a block, `[b, k, n, e]`.

    Args:
        before: kernel of the tokens before an edge, `[b, n, n]`.
        after: of those after it, endings included, `[b, e, e]`.
        start: d_1, `[b, n]`.
        worth: B_{T+1}, `[b, k, e]`.
        horizon: T.
    """
    left, right = before.transpose(-1, -2)[:, None].contiguous(), after.transpose(-1, -2)[:, None].contiguous()
    first = start[:, None, :, None] * worth[:, :, None, :]
    same = left.shape == right.shape and torch.equal(left, right)
    total, lefts, rights = first, left, right
    for bit in f"{horizon:b}"[1:]:
        total = lefts @ total + total @ rights
        lefts, rights = _squared(lefts, rights, same)
        if bit == "1":
            total = left @ total + first @ rights
            lefts, rights = _stepped(lefts, rights, left, right, same)
    return total


def ahead(kernel: Tensor, worth: Tensor, horizon: int) -> Tensor:
    """B_1 = P^T B_{T+1} of every place, `[b, e, k]`, for `worth` `[b, e, k]`."""
    power, value = kernel, worth
    while horizon:
        if horizon & 1:
            value = power @ value
        horizon >>= 1
        if horizon:
            power = power @ power
    return value


def log_ahead(kernel: Tensor, start: Tensor, horizon: int) -> Tensor:
    """log Σ_c d_1(c) (P^T 1)(c) of every block, `[b]`, whatever its size; arguments as of `came`."""
    power, value = kernel, torch.ones_like(kernel[..., :1])
    of_power, of_value = (torch.zeros(len(kernel), 1, 1, dtype=torch.float64) for _ in range(2))
    while horizon:
        if horizon & 1:
            value, grown = _scaled(power @ value)
            of_value = of_value + of_power + grown
        horizon >>= 1
        if horizon:
            power, grown = _scaled(power @ power)
            of_power = 2 * of_power + grown
    return (start[:, None] @ value).log()[:, 0, 0] + of_value[:, 0, 0]


def _scaled(values: Tensor) -> tuple[Tensor, Tensor]:
    """Divided by the largest, and its logarithm."""
    largest = values.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return values / largest, largest.log()


def came(kernel: Tensor, start: Tensor, horizon: int) -> Tensor:
    """Σ_t d_t, how often each context is come to in T steps, `[b, n]`, for `start` `[b, n]`."""
    first = start[:, None]
    total, power = first, kernel
    for bit in f"{horizon:b}"[1:]:
        total = total + total @ power
        power = power @ power
        if bit == "1":
            total = first + total @ kernel
            power = power @ kernel
    return total[:, 0]


def _squared(left: Tensor, right: Tensor, same: bool) -> tuple[Tensor, Tensor]:
    squared = left @ left
    return squared, squared if same else right @ right


def _stepped(lefts: Tensor, rights: Tensor, left: Tensor, right: Tensor, same: bool) -> tuple[Tensor, Tensor]:
    stepped = lefts @ left
    return stepped, stepped if same else rights @ right
