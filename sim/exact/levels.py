"""Sums over the responses of a tree, level by level: the recursions of `recursion` where contexts never merge.

Shapes: M members, N contexts, N_t of level t, V vocabulary, T horizon, P prompts, n reward levels, C columns.

The edges that end a response are its *terminal* edges: those of token 0, where it ends one, and all of the last level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The levels of a tree.

    Args:
        widths: contexts of each, N_t.
        first: the first token that a response goes on after.
        terminal: int64 `[N, V]`, which of n reward levels a response that ends here earns; -1 where it goes on.
        prompt: int64 `[N]`, the prompt that a context belongs to.
    """

    widths: tuple[int, ...]
    first: int
    terminal: Tensor
    prompt: Tensor

    def ends(self, by_length: Tensor | None) -> Tensor:
        """f(|y|) on terminal edges and 0 elsewhere, `[N, V]`."""
        ends = (self.terminal >= 0).double()
        if by_length is None:
            return ends
        depth = torch.arange(len(self.widths)).repeat_interleave(torch.tensor(self.widths))
        return ends * by_length[depth + 1, None]

    def split(self, x: Tensor, axis: int = -2) -> Sequence[Tensor]:
        """Of an array over contexts the part of each level."""
        return torch.split(x, list(self.widths), dim=axis)


def ahead(levels: Levels, kernel: Tensor, worth: Tensor) -> tuple[list[Tensor], Tensor]:
    """What is earned after each edge, and from each prompt on.

    Args:
        levels: the tree.
        kernel: `[M, N, V]`, of the tokens after the edge.
        worth: `[M or 1, C, N, V]`, of terminal edges, 0 elsewhere.

    Returns:
        `[M, C, N_t, V]` of each level, and `[M, C, P]`.
    """
    found: list[Tensor] = []
    value = torch.zeros(())
    for mass, ending in zip(reversed(levels.split(kernel)), reversed(levels.split(worth)), strict=True):
        after = ending.expand(len(kernel), -1, -1, -1)
        if found:
            after = after.clone()
            after[..., levels.first :] = _children(value, mass.shape[1])
        found.append(after)
        value = (mass[:, None] * after).sum(-1)
    return found[::-1], value


def came(levels: Levels, kernel: Tensor) -> list[Tensor]:
    """d_t of the contexts of each level, prompts equally likely, `[M, N_t]` each."""
    now = torch.full((len(kernel), levels.widths[0]), 1.0 / levels.widths[0], dtype=torch.float64)
    found = [now]
    for mass in levels.split(kernel)[:-1]:
        now = (now[..., None] * mass[..., levels.first :]).flatten(1)
        found.append(now)
    return found


def expansion(levels: Levels, kernel: Tensor, change: Tensor, worth: Tensor, order: int) -> Tensor:
    """E^k(c) = Σ_a K(a|c) (E^k(c a) + change(a|c) E^(k-1)(c a)) of each prompt for k = 0, ..., `order`, `[M, order + 1,
    P]`, where a terminal edge is worth `worth` `[N, V]`."""
    value, last = torch.zeros(()), True
    for mass, moved, ending in zip(*(reversed(levels.split(x)) for x in (kernel, kernel * change, worth)), strict=True):
        after = torch.zeros(len(kernel), order + 1, *ending.shape, dtype=torch.float64)
        after[:, 0] = ending
        if not last:
            after[..., levels.first :] = _children(value, len(ending))
        value, last = (mass[:, None] * after).sum(-1), False
        value[:, 1:] += (moved[:, None] * after[:, :-1]).sum(-1)
    return value


def nearer(levels: Levels, kernel: Tensor, worth: Tensor, found: list[Tensor], steps: int) -> list[Tensor]:
    """What is earned after each edge where the next `steps` tokens have another kernel, from what is without it."""
    for _ in range(steps):
        values = [(mass[:, None] * after).sum(-1) for mass, after in zip(levels.split(kernel), found, strict=True)]
        found = [after.clone() for after in found]
        for after, value in zip(found, values[1:], strict=False):
            after[..., levels.first :] = _children(value, after.shape[-2])
    return found


def _children(value: Tensor, contexts: int) -> Tensor:
    """Values of the contexts of a level, `[..., N_{t+1}]`, by the context above, `[..., N_t, W]`."""
    return value.view(*value.shape[:-1], contexts, -1)
