"""Arms: which recipe each member of an ensemble follows, and what that makes of its rewards and statistics.

A backend without an ensemble axis has one arm. In an ensemble the members of an arm lie side by side on the leading
axis M, and every function below gives each member exactly what it would get alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firstorder.core.errors import DataError
from firstorder.core.method.advantage import advantage
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.scale import scaled
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.surrogate import receipts, token_weights
from firstorder.core.method.terms import active, entropy_weights, moments, with_terms
from firstorder.core.method.value import gae, lambda_returns
from firstorder.core.quantities import Moments, add

from .backend import Scored
from .diagnostics import remainder_moment


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One recipe and how many members of the ensemble follow it; None for a backend without an ensemble axis."""

    recipe: Recipe
    members: int | None = None


class RecipeWeights:
    """From the statistics of a batch or a chunk to its token weights, the terms of sampled tokens included.

    It keeps the receipts of what each part did, and the moments of what only exists while θ is being updated.
    """

    def __init__(self, arms: tuple[Arm, ...]) -> None:
        self.arms = arms
        self.receipts: Moments = {}
        self.moments: Moments = {}
        self.terms = active(arm.recipe for arm in arms)

    def __call__(self, stats: TokenStats) -> Tensor:
        """w `[..., B, T]` of every arm for its own members, with what its terms add."""
        factors = [token_weights(piece, arm.recipe) for arm, piece in self._pieces(stats)]
        acted = [
            receipts(piece, made, arm.recipe) for (arm, piece), made in zip(self._pieces(stats), factors, strict=True)
        ]
        joined = {name: (_join([a[name][0] for a in acted]), _join([a[name][1] for a in acted])) for name in acted[0]}
        self.receipts = add(self.receipts, joined)
        if stats.rewards is not None:
            moment = remainder_moment(stats, stats.logp_theta)
            self.moments = add(self.moments, {"update/second_order_remainder": moment})
        if self.terms:
            self.moments = add(self.moments, self._term_moments(stats))
        return _join(
            [
                with_terms(made.weight, piece, arm.recipe)
                for (arm, piece), made in zip(self._pieces(stats), factors, strict=True)
            ]
        )

    def _term_moments(self, stats: TokenStats) -> Moments:
        found = [moments(piece, arm.recipe, self.terms) for arm, piece in self._pieces(stats)]
        return {name: (_join([f[name][0] for f in found]), _join([f[name][1] for f in found])) for name in found[0]}

    def _pieces(self, stats: TokenStats) -> Iterator[tuple[Arm, TokenStats]]:
        return ((arm, stats.members(mine)) for arm, mine in cuts(self.arms))


def bonus_weights(stats: TokenStats, arms: tuple[Arm, ...]) -> Tensor | None:
    """What `bonus_loss` multiplies the entropy of each token by, `[..., B, T]`; None where no arm has a bonus."""
    if not any(arm.recipe.terms.entropy for arm in arms):
        return None
    return _join([entropy_weights(stats.members(mine), arm.recipe) for arm, mine in cuts(arms)])


def with_advantages(scored: Scored, arms: tuple[Arm, ...], group_size: int) -> Scored:
    """The batch with A of every response, or of every token where an arm has a critic, and the critic's targets.

    Args:
        scored: with `values` if an arm has a critic.
        arms: each with its own baseline.
        group_size: G; groups lie side by side.

    Raises:
        DataError: the batch does not divide into groups, or an arm's critic has given no values.
    """
    rewards = scored.batch.rewards
    if rewards.shape[-1] % group_size:
        raise DataError(f"a batch of {rewards.shape[-1]} responses does not divide into groups of {group_size}")
    pieces = [_advantage(arm.recipe, scored, mine, group_size) for arm, mine in cuts(arms)]
    if any(piece.ndim > rewards.ndim for piece in pieces):
        positions = scored.logp_old.shape[-1]
        pieces = [p if p.ndim > rewards.ndim else p[..., None].expand(*p.shape, positions) for p in pieces]
    return replace(scored, advantage=_join(pieces), returns=_returns(scored, arms))


def _advantage(recipe: Recipe, scored: Scored, mine: slice, group_size: int) -> Tensor:
    """A of an arm's members: `[..., B]`, or `[..., B, L]` with a critic."""
    rewards, mask = scored.batch.rewards[mine], scored.batch.mask[mine]
    return scaled(_against_baseline(recipe, scored, mine, group_size), rewards, mask, recipe.advantage)


def _against_baseline(recipe: Recipe, scored: Scored, mine: slice, group_size: int) -> Tensor:
    rewards, rule = scored.batch.rewards[mine], recipe.advantage
    if not recipe.has_critic:
        grouped = rewards.reshape(*rewards.shape[:-1], -1, group_size)
        return advantage(grouped, rule).flatten(-2)
    if scored.values is None:
        raise DataError(
            "advantage.baseline = value needs a critic's value of each context, and this backend has scored none; "
            "choose another advantage.baseline"
        )
    return gae(scored.values[mine], rewards, scored.batch.mask[mine], rule.gae_lambda)


def _returns(scored: Scored, arms: tuple[Arm, ...]) -> Tensor | None:
    """What each arm's critic is trained on, `[..., B, L]`."""
    if scored.values is None:
        return None
    v, r, mask = scored.values, scored.batch.rewards, scored.batch.mask
    lams = [(arm.recipe.advantage.gae_lambda, mine) for arm, mine in cuts(arms)]
    return _join([lambda_returns(v[mine], r[mine], mask[mine], lam) for lam, mine in lams])


def cuts(arms: tuple[Arm, ...]) -> Iterator[tuple[Arm, slice]]:
    """Where each arm's members lie on the leading axis; everywhere without an ensemble axis."""
    start = 0
    for arm in arms:
        yield arm, slice(None) if arm.members is None else slice(start, start + arm.members)
        start += arm.members or 0


def _join(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
