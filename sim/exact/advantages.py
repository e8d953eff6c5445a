"""What an advantage is worth on average over the rest of its group, prompt by prompt, or token by token from a critic.

Shapes: M members, X prompts, n reward levels, B responses, T tokens, N contexts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firstorder.core.method.recipe import Recipe
from firstorder.core.method.scale import Affine, of_rewards, of_tokens, settled
from firstorder.core.method.value import gae

from .groups import expected_moments, expected_parts, sign_chances
from .objectives import state_values
from .scene import Scene
from .world import gather_contexts


@dataclass(frozen=True, kw_only=True)
class AdvantageTable:
    """E[A⁺ | R] and E[A⁻ | R] over the rest of the group, `[M, X, n]`, for the reward `levels` `[n]`, ascending.

    `chance` is that of each level under μ_old; `positive` and `negative` are P(A > 0 | R) and P(A < 0 | R). `scale` is
    what ever larger batches divide by, `[M]`; None where nothing does.
    """

    levels: Tensor
    chance: Tensor
    plus: Tensor
    minus: Tensor
    positive: Tensor
    negative: Tensor
    scale: Affine | None = None

    def of(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """E[A⁺] and E[A⁻] of every response of a scene, `[M, B]`."""
        return self._rows(scene, self.plus, self.minus)

    def signs(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """P(A > 0) and P(A < 0) of every response of a scene, `[M, B]`."""
        return self._rows(scene, self.positive, self.negative)

    def scale_of(self, member: int) -> Affine | None:
        """The scale of one member."""
        return self.scale and Affine(shift=self.scale.shift[member], spread=self.scale.spread[member])

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
    scale: Affine | None = None

    def of(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """A⁺ and A⁻ of every token of a scene, `[M, B, T]`."""
        a = self.unscaled(scene)
        a = a if self.scale is None else torch.where(scene.responses.mask, self.scale(a), 0.0)
        return a.clamp(min=0), (-a).clamp(min=0)

    def unscaled(self, scene: Scene) -> Tensor:
        """A of every token of a scene before any scale, `[M, B, T]`."""
        paths = scene.responses
        return gae(gather_contexts(self.values, paths), paths.rewards, paths.mask, self.gae_lambda)


def advantage_table(scene: Scene, recipe: Recipe, values: Tensor | None = None) -> AdvantageTable | CriticTable:
    """The expected advantages of a recipe under μ_old.

    Args:
        scene: the responses.
        recipe: its baseline and the size of its groups.
        values: `[M, N]`, what its critic says of each context; None for a perfect one, V = V^μ.
    """
    if recipe.has_critic:
        known = state_values(scene.mu_old.logp, scene.world) if values is None else values
        critic = CriticTable(values=known, gae_lambda=recipe.advantage.gae_lambda)
        return replace(critic, scale=_scale(scene, recipe, critic))
    levels, chance = scene.world.levels, reward_chances(scene)
    scale = _scale(scene, recipe, None)
    group = levels, chance, recipe.advantage, recipe.schedule.group_size, scale
    (plus, minus), (positive, negative) = expected_parts(*group), sign_chances(*group)
    return AdvantageTable(
        levels=levels, chance=chance, plus=plus, minus=minus, positive=positive, negative=negative, scale=scale
    )


def _scale(scene: Scene, recipe: Recipe, critic: CriticTable | None) -> Affine | None:
    """What `advantage.scale` divides by in the limit of large batches, `[M]`."""
    kind = recipe.advantage.scale
    if kind == "none":
        return None
    if kind == "batch_std":
        levels, chance = scene.world.levels, reward_chances(scene).mean(1)
        mean = chance @ levels
        variance = (chance * (levels - mean[:, None]).square()).sum(-1)
        return Affine(shift=torch.zeros_like(mean), spread=of_rewards(variance.sqrt()))
    mean, square = _of_groups(scene, recipe) if critic is None else _of_tokens(scene, critic)
    return Affine(shift=settled(mean, square), spread=of_tokens((square - mean.square()).clamp(min=0)))


def _of_groups(scene: Scene, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """E[A] and E[A²] over response tokens, `[M]`: given its reward, a response's length says nothing of its group."""
    lengths = torch.arange(scene.world.horizon + 1).double()
    tokens = scene.world.earned(scene.mu_old.logp.exp(), lengths).transpose(-1, -2)  # [M, X, n] of E|y| at each level
    tokens = tokens / tokens.sum((-2, -1), keepdim=True)
    group = scene.world.levels, reward_chances(scene), recipe.advantage, recipe.schedule.group_size
    mean, square = ((tokens * x).sum((-2, -1)) for x in expected_moments(*group))
    return mean, square


def _of_tokens(scene: Scene, critic: CriticTable) -> tuple[Tensor, Tensor]:
    """E[A] and E[A²] over the response tokens of the scene, `[M]`."""
    sums = [torch.zeros((), dtype=torch.float64)] * 3
    for part in scene.parts():
        a, on = critic.unscaled(part), part.measure[..., None] * part.responses.mask
        sums = [
            total + (on * x).sum((-2, -1)) for total, x in zip(sums, (torch.ones_like(a), a, a.square()), strict=True)
        ]
    tokens, mean, square = sums
    return mean / tokens, square / tokens


def reward_chances(scene: Scene) -> Tensor:
    """μ_old's chance of each reward level per prompt, `[M, X, n]`."""
    return scene.world.earned(scene.mu_old.logp.exp()).transpose(-1, -2)
