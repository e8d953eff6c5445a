"""Arms: which recipe each member of an ensemble follows, and what that makes of its rewards and statistics.

A backend without an ensemble axis has one arm. In an ensemble the members of an arm lie side by side on the leading
axis M, and every function below gives each member exactly what it would get alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .advantage import advantage
from .diagnostics import Moments, add, remainder_moment
from .errors import DataError
from .recipe import Recipe
from .stats import TokenStats
from .surrogate import receipts, token_weights


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One recipe and how many members of the ensemble follow it; None for a backend without an ensemble axis."""

    recipe: Recipe
    members: int | None = None


class Weigher:
    """From the statistics of a batch or a chunk to its token weights.

    It keeps the receipts of what each part did, and the moments of what only exists while θ is being updated.
    """

    def __init__(self, arms: tuple[Arm, ...]) -> None:
        self.arms = arms
        self.receipts: Moments = {}
        self.moments: Moments = {}

    def __call__(self, stats: TokenStats) -> Tensor:
        """w `[..., B, T]` of every arm for its own members."""
        parts = [token_weights(piece, arm.recipe) for arm, piece in self._pieces(stats)]
        acted = [
            receipts(piece, done, arm.recipe) for (arm, piece), done in zip(self._pieces(stats), parts, strict=True)
        ]
        joined = {name: (_join([a[name][0] for a in acted]), _join([a[name][1] for a in acted])) for name in acted[0]}
        self.receipts = add(self.receipts, joined)
        if stats.rewards is not None:
            moment = remainder_moment(stats, stats.logp_theta)
            self.moments = add(self.moments, {"update/second_order_remainder": moment})
        return _join([done.weight for done in parts])

    def _pieces(self, stats: TokenStats) -> Iterator[tuple[Arm, TokenStats]]:
        start = 0
        for arm in self.arms:
            if arm.members is None:
                yield arm, stats
                continue
            yield arm, stats.members(slice(start, start + arm.members))
            start += arm.members


def advantages(rewards: Tensor, arms: tuple[Arm, ...], group_size: int) -> Tensor:
    """A of every response under its arm's baseline, `[..., B]`; groups lie side by side."""
    if rewards.shape[-1] % group_size:
        raise DataError(f"a batch of {rewards.shape[-1]} responses does not divide into groups of {group_size}")
    grouped = rewards.reshape(*rewards.shape[:-1], -1, group_size)
    pieces, start = [], 0
    for arm in arms:
        mine = grouped if arm.members is None else grouped[start : start + arm.members]
        pieces.append(advantage(mine, arm.recipe.advantage))
        start += arm.members or 0
    return _join(pieces).flatten(-2)


def _join(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
