"""What an advantage is worth on average over the rest of its group, prompt by prompt, or token by token from a critic.

Shapes: M members, X prompts, n reward levels, B responses, T tokens, N contexts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core.method.recipe import Recipe
from firstorder.core.method.value import gae

from .groups import expected_parts, sign_chances
from .objectives import state_values
from .scene import Scene
from .world import gather_contexts


@dataclass(frozen=True, kw_only=True)
class AdvantageTable:
    """E[A⁺ | R] and E[A⁻ | R] over the rest of the group, `[M, X, n]`, for the reward `levels` `[n]`, ascending.

    `chance` is that of each level under μ_old; `positive` and `negative` are P(A > 0 | R) and P(A < 0 | R).
    """

    levels: Tensor
    chance: Tensor
    plus: Tensor
    minus: Tensor
    positive: Tensor
    negative: Tensor

    def of(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """E[A⁺] and E[A⁻] of every response of a scene, `[M, B]`."""
        return self._rows(scene, self.plus, self.minus)

    def signs(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """P(A > 0) and P(A < 0) of every response of a scene, `[M, B]`."""
        return self._rows(scene, self.positive, self.negative)

    def rank(self, scene: Scene) -> Tensor:
        """The level of every response's reward, int64 `[B]`."""
        return torch.searchsorted(self.levels, scene.responses.rewards)

    def _rows(self, scene: Scene, *tables: Tensor) -> tuple[Tensor, Tensor]:
        prompt, rank = scene.responses.prompt, self.rank(scene)
        if prompt.ndim == 1:
            above, below = (table[:, prompt, rank] for table in tables)
        else:
            place = prompt * len(self.levels) + rank
            above, below = (table.flatten(1).gather(1, place) for table in tables)
        return above, below


@dataclass(frozen=True, kw_only=True)
class CriticTable:
    """A⁺ and A⁻ of every token from a critic's `values` `[M, N]`: they hang on the response alone."""

    values: Tensor
    gae_lambda: float

    def of(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """A⁺ and A⁻ of every token of a scene, `[M, B, T]`."""
        paths = scene.responses
        a = gae(gather_contexts(self.values, paths), paths.rewards, paths.mask, self.gae_lambda)
        return a.clamp(min=0), (-a).clamp(min=0)


def advantage_table(scene: Scene, recipe: Recipe, values: Tensor | None = None) -> AdvantageTable | CriticTable:
    """The expected advantages of a recipe under μ_old.

    Args:
        scene: the responses.
        recipe: its baseline and the size of its groups.
        values: `[M, N]`, what its critic says of each context; None for a perfect one, V = V^μ.
    """
    if recipe.has_critic:
        known = state_values(scene.mu_old.logp, scene.world) if values is None else values
        return CriticTable(values=known, gae_lambda=recipe.advantage.gae_lambda)
    levels, chance = scene.world.levels, reward_chances(scene)
    group = levels, chance, recipe.advantage, recipe.schedule.group_size
    (plus, minus), (positive, negative) = expected_parts(*group), sign_chances(*group)
    return AdvantageTable(levels=levels, chance=chance, plus=plus, minus=minus, positive=positive, negative=negative)


def reward_chances(scene: Scene) -> Tensor:
    """μ_old's chance of each reward level per prompt, `[M, X, n]`."""
    return scene.world.earned(scene.mu_old.logp.exp()).transpose(-1, -2)
