"""A recipe on a scene: every response with its weights, and the update to expect.

Shapes: M members, B responses, T tokens, N contexts, P parameters.

Every shipped weight is homogeneous in the advantage, so that E[w] = E[A⁺] w(+1) + E[A⁻] w(-1): see `groups`. A response
is weighed twice, once for either sign, and all that is reported reads these two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from firstorder.core.method.recipe import Recipe
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.surrogate import TokenWeights, token_weights

from . import objectives
from .advantages import AdvantageTable, CriticTable, advantage_table
from .edges import Pass, kl, router_shift, vjp
from .scene import Mode, Scene
from .tree import gather, gather_contexts, scatter


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The responses of a scene, or of a part of one, as a recipe weighs them.

    Args:
        scene: the responses.
        stats: the same as a recipe sees them, at advantage 1.
        plus, minus: E[A⁺] and E[A⁻] over the rest of the group, `[M, B]`, or `[M, B, T]` from a critic.
        up, down: token weights at advantage +1 and at -1.
    """

    scene: Scene
    stats: TokenStats
    plus: Tensor
    minus: Tensor
    up: TokenWeights
    down: TokenWeights

    @property
    def expected(self) -> Tensor:
        """μ_old(y) E[w_t | y] over the rest of the group, `[M, B, T]`."""
        plus, minus = (a if a.ndim == self.stats.mask.ndim else a[..., None] for a in (self.plus, self.minus))
        return self.scene.measure[..., None] * (plus * self.up.weight + minus * self.down.weight)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One recipe on one scene; what it takes to say something of it is made when it is first read, and once.

    Args:
        scene: with the recipe's target.
        recipe: the method.
        values: `[M, N]`, what the recipe's critic says of each context; None for a perfect one, V = V^μ.
    """

    scene: Scene
    recipe: Recipe
    values: Tensor | None = None

    @property
    def mode(self) -> Mode:
        """The recipe's replay."""
        return self.recipe.router_replay.mode

    @property
    def target(self) -> Pass:
        """The policy that the recipe updates."""
        return self.scene.target[self.mode]

    @cached_property
    def advantages(self) -> AdvantageTable | CriticTable:
        """The expected advantages under μ_old."""
        return advantage_table(self.scene, self.recipe, self.values)

    @cached_property
    def batch(self) -> Batch:
        """All responses at once."""
        return self._weighed(self.scene)

    def batches(self) -> Iterator[Batch]:
        """The responses in chunks, or all at once where they fit into one or a weight reads the whole batch."""
        parts = [self.scene] if self.recipe.weight_scope == "batch" else self.scene.parts()
        return (self.batch if len(parts) == 1 else self._weighed(part) for part in parts)

    def coefficients(self) -> Tensor:
        """E_μ[Σ_t w_t] over the tokens that take each edge, `[M, N, V]`."""
        edges = torch.zeros((), dtype=torch.float64)
        for batch in self.batches():
            edges = edges + scatter(batch.expected, batch.scene.tree)
        return edges

    @cached_property
    def update(self) -> Tensor:
        """u = E_μ[Σ_t w_t ∇ log π_θ(y_t)], the exact expected update, `[M, P]`."""
        return vjp(self.target, self.coefficients(), self.scene.weights)

    @cached_property
    def gradient(self) -> Tensor:
        """∇J_seq of the recipe's own target, `[M, P]`; eq. (2)."""
        return self.natural_gradient if self.mode == "disabled" else objectives.gradient(self.scene, self.mode)

    @cached_property
    def natural_gradient(self) -> Tensor:
        """∇J_seq of the target that routes live, `[M, P]`."""
        return objectives.gradient(self.scene, "disabled")

    def _weighed(self, part: Scene) -> Batch:
        stats = token_stats(part, self.recipe)
        plus, minus = self.advantages.of(part)
        up, down = signed_weights(part, stats, self.recipe, self.advantages)
        return Batch(scene=part, stats=stats, plus=plus, minus=minus, up=up, down=down)


def update(scene: Scene, recipe: Recipe, values: Tensor | None = None) -> Tensor:
    """The exact expected update of a recipe, `[M, P]`; arguments as of `Measurement`."""
    return Measurement(scene=scene, recipe=recipe, values=values).update


def token_stats(scene: Scene, recipe: Recipe) -> TokenStats:
    """The exhaustive batch as a recipe sees it: `[M, B, T]`, with measure μ_old(y) and advantage 1."""
    mode, tree = recipe.router_replay.mode, scene.tree
    target, old = scene.target[mode], scene.old[mode]
    kl_mu = shift = None
    if "kl_mu" in recipe.needs:
        kl_mu = gather_contexts(kl(scene.mu_old.logp, target.logp.detach()), tree)
    if "router_shift" in recipe.needs:
        shift = gather_contexts(router_shift(target, old), tree)
    logp_mu = gather(scene.mu_old.logp, tree)
    return TokenStats(
        logp_theta=gather(target.logp.detach(), tree),
        logp_old=gather(old.logp.detach(), tree),
        logp_mu=logp_mu,
        mask=tree.mask.expand(logp_mu.shape),
        advantage=torch.ones(logp_mu.shape[:-1], dtype=torch.float64),
        measure=scene.measure,
        kl_mu=kl_mu,
        router_shift=shift,
        rewards=scene.rewards.expand(logp_mu.shape[:-1]),
    )


def signed_weights(
    scene: Scene, stats: TokenStats, recipe: Recipe, advantages: AdvantageTable | CriticTable
) -> tuple[TokenWeights, TokenWeights]:
    """Token weights at advantage +1 and at advantage -1.

    A clip that reads the signs of the whole batch meets each response with either, as often as the advantages say.
    """
    if recipe.reads_signs:
        return _weights_among_signs(scene, stats, recipe, advantages)
    return token_weights(stats, recipe), token_weights(stats.with_advantage(-stats.advantage), recipe)


def _weights_among_signs(
    scene: Scene, stats: TokenStats, recipe: Recipe, advantages: AdvantageTable | CriticTable
) -> tuple[TokenWeights, TokenWeights]:
    if isinstance(advantages, CriticTable):  # it knows each token's sign, so that one batch holds them all
        plus, minus = advantages.of(scene)
        weights = token_weights(stats.with_advantage(plus - minus), recipe)
        unit = torch.where(stats.mask, weights.clipped * weights.correction / weights.norm, 0.0)
        return replace(weights, weight=unit), replace(weights, weight=-unit)
    positive, negative = advantages.signs(scene)
    chances = positive, negative, (1 - positive - negative).clamp(min=0)
    copies = {name: torch.cat([x] * 3, dim=1) for name, x in vars(stats).items() if x is not None}
    signs = torch.cat([sign * torch.ones_like(stats.advantage) for sign in (1, -1, 0)], dim=1)
    measure = torch.cat([scene.measure * chance for chance in chances], dim=1)
    weights = token_weights(TokenStats(**copies | {"advantage": signs, "measure": measure}), recipe)
    size = scene.measure.shape[1]
    up, down = (
        TokenWeights(**{name: x if x.shape[1] == 1 else x[:, cut] for name, x in vars(weights).items()})
        for cut in (slice(size), slice(size, 2 * size))
    )
    return up, down
