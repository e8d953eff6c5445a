"""Exact expectations over the exhaustive batch: objectives, gradients, expected updates.

Shapes: M members, B responses, T tokens, N contexts, V vocabulary, P parameters.
Nothing is sampled; every gradient is one vector-Jacobian product through the tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firstorder.core.method.recipe import Recipe
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.surrogate import TokenWeights, token_weights
from firstorder.core.method.value import gae
from firstorder.sim.model.policy import Weights

from .forward import Pass, vjp
from .groups import expected_parts, sign_chances
from .scene import Mode, Scene, token_share, token_stats
from .tree import Tree, chunks, gather, gather_contexts, responses, scatter


def value(logp: Tensor, tree: Tree, rewards: Tensor) -> Tensor:
    """J = E_x Σ_y p(y|x) R(x, y) of a policy with edge log-probs `[M, N, V]`; eq. (1); `[M]`."""
    return (gather(logp, tree).sum(-1).exp() * rewards).sum(-1) / len(tree.prompts)


def state_values(logp: Tensor, tree: Tree, rewards: Tensor) -> Tensor:
    """V(c) = E[R | c] of a policy with edge log-probs `[M, N, V]`, `[M, N]`; 0 at contexts that it cannot reach."""
    earned = reached = torch.zeros((), dtype=torch.float64)
    for cut in chunks(tree, len(logp)):
        part = responses(tree, cut)
        chance = gather(logp, part).sum(-1).exp()
        earned = earned + scatter(_every_token(chance * rewards[cut], part), part).sum(-1)
        reached = reached + scatter(_every_token(chance, part), part).sum(-1)
    return torch.where(reached > 0, earned / reached, 0.0)


def _every_token(held: Tensor, tree: Tree) -> Tensor:
    """What each response holds, `[M, B]`, at each of its tokens, `[M, B, T]`."""
    return held[..., None].expand(-1, -1, tree.horizon)


def gradient(scene: Scene, mode: Mode) -> Tensor:
    """∇J_seq of a target, `[M, P]`; eq. (2)."""
    return sequence_gradient(scene.target[mode], scene.tree, scene.rewards, scene.weights)


def sequence_gradient(done: Pass, tree: Tree, rewards: Tensor, weights: Weights) -> Tensor:
    """∇J_seq of the policy of a pass, `[M, P]`; eq. (2) with (π/μ) μ = π: every token weighs π(y) R."""
    logp = done.logp.detach()
    edges = torch.zeros((), dtype=torch.float64)
    for cut in chunks(tree, len(logp)):
        part = responses(tree, cut)
        chance = gather(logp, part).sum(-1).exp() / len(tree.prompts)
        edges = edges + scatter(_every_token(chance * rewards[cut], part), part)
    return vjp(done, edges, weights)


def direction(scene: Scene, mode: Mode, weight: Tensor) -> Tensor:
    """Σ_y Σ_t weight · ∇ log π_θ(y_t | c_t) of a target for `[M, B, T]` weights, probability included; `[M, P]`."""
    return vjp(scene.target[mode], scatter(weight, scene.tree), scene.weights)


def entropy_gradient(scene: Scene) -> Tensor:
    """∇ of the entropy of the natural π_θ on μ_old's prefixes, nats a response token, `[M, P]`.

    The prefixes are held fixed, so each context c adds -Σ_v π(v|c) log π(v|c) ∇ log π(v|c), weighted by its share.
    """
    done = scene.target["disabled"]
    logp = done.logp.detach()
    return vjp(done, -token_share(scene)[..., None] * logp.exp() * logp, scene.weights)


def update(scene: Scene, recipe: Recipe, values: Tensor | None = None) -> Tensor:
    """u = E_μ[Σ_t w_t ∇ log π_θ(y_t)], the exact expected update of a recipe, `[M, P]`.

    Every shipped weight is homogeneous in the advantage, so E[w] = E[A⁺] w(+1) + E[A⁻] w(-1): see `sim.groups`.

    Args:
        scene: with the recipe's target.
        recipe: the method.
        values: `[M, N]`, what the recipe's critic says of each context; None for a perfect one, V = V^μ.
    """
    table = advantage_table(scene, recipe, values)
    edges = torch.zeros((), dtype=torch.float64)
    for part in weighed_parts(scene, recipe):
        edges = edges + scatter(expected_weights(part, recipe, table), part.tree)
    return vjp(scene.target[recipe.router_replay.mode], edges, scene.weights)


def weighed_parts(scene: Scene, recipe: Recipe) -> Iterator[Scene]:
    """The responses in chunks, or all at once where a weight reads the whole batch."""
    return iter([scene]) if recipe.weight_scope == "batch" else scene.parts()


@dataclass(frozen=True, kw_only=True)
class AdvantageTable:
    """E[A⁺ | R] and E[A⁻ | R] over the rest of the group, `[M, X, n]` for X prompts and n reward `levels`.

    `positive` and `negative` are the chances of either sign, P(A > 0 | R) and P(A < 0 | R).
    """

    levels: Tensor
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

    def _rows(self, scene: Scene, *tables: Tensor) -> tuple[Tensor, Tensor]:
        rank = torch.searchsorted(self.levels, scene.rewards)
        above, below = (table[:, scene.tree.prompt, rank] for table in tables)
        return above, below


@dataclass(frozen=True, kw_only=True)
class CriticTable:
    """A⁺ and A⁻ of every token from a critic's `values` `[M, N]`: they hang on the response alone."""

    values: Tensor
    gae_lambda: float

    def of(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """A⁺ and A⁻ of every token of a scene, `[M, B, T]`."""
        held = gather_contexts(self.values, scene.tree)
        a = gae(held, scene.rewards, scene.tree.mask, self.gae_lambda)
        return a.clamp(min=0), (-a).clamp(min=0)


def advantage_table(scene: Scene, recipe: Recipe, values: Tensor | None = None) -> AdvantageTable | CriticTable:
    """The expected advantages of a recipe under μ_old; `values` as for `update`."""
    if recipe.has_critic:
        known = state_values(scene.mu_old.logp, scene.tree, scene.rewards) if values is None else values
        return CriticTable(values=known, gae_lambda=recipe.advantage.gae_lambda)
    levels, chance = reward_levels(scene)
    group = levels, chance, recipe.advantage, recipe.schedule.group_size
    (plus, minus), (positive, negative) = expected_parts(*group), sign_chances(*group)
    return AdvantageTable(levels=levels, plus=plus, minus=minus, positive=positive, negative=negative)


def reward_levels(scene: Scene) -> tuple[Tensor, Tensor]:
    """The reward levels `[n]`, ascending, and μ_old's chance of each per prompt `[M, X, n]`."""
    levels = torch.unique(scene.rewards)
    count = len(scene.tree.prompts)
    chance = torch.zeros(scene.mu_old.logp.shape[0], count * len(levels), dtype=torch.float64)
    for part in scene.parts():
        cell = part.tree.prompt * len(levels) + torch.searchsorted(levels, part.rewards)
        chance.index_add_(1, cell, part.measure * count)
    return levels, chance.view(-1, count, len(levels))


def expected_weights(scene: Scene, recipe: Recipe, table: AdvantageTable | CriticTable) -> Tensor:
    """μ_old(y) E[w_t | y] over the rest of the group, `[M, B, T]`."""
    stats = token_stats(scene, recipe)
    plus, minus = (stats.with_advantage(part).token_advantage for part in table.of(scene))
    up, down = signed_weights(scene, stats, recipe, table)
    return scene.measure[..., None] * (plus * up.weight + minus * down.weight)


def signed_weights(
    scene: Scene, stats: TokenStats, recipe: Recipe, table: AdvantageTable | CriticTable
) -> tuple[TokenWeights, TokenWeights]:
    """Token weights at advantage +1 and at advantage -1.

    A clip that reads the signs of the whole batch meets each response with either, as often as the table says.
    """
    one = torch.ones_like(stats.advantage)
    if recipe.clip.kind == "m2po":
        return _weights_among_signs(scene, stats, recipe, table)
    up, down = (token_weights(stats.with_advantage(sign * one), recipe) for sign in (1, -1))
    return up, down


def _weights_among_signs(
    scene: Scene, stats: TokenStats, recipe: Recipe, table: AdvantageTable | CriticTable
) -> tuple[TokenWeights, TokenWeights]:
    if isinstance(table, CriticTable):  # it knows each token's sign, so that one batch holds them all
        plus, minus = table.of(scene)
        parts = token_weights(stats.with_advantage(plus - minus), recipe)
        unit = torch.where(stats.mask, parts.clipped * parts.correction / parts.norm, 0.0)
        return replace(parts, weight=unit), replace(parts, weight=-unit)
    positive, negative = table.signs(scene)
    chances = positive, negative, (1 - positive - negative).clamp(min=0)
    copies = {name: torch.cat([x] * 3, dim=1) for name, x in vars(stats).items() if x is not None}
    signs = torch.cat([sign * torch.ones_like(stats.advantage) for sign in (1, -1, 0)], dim=1)
    measure = torch.cat([scene.measure * chance for chance in chances], dim=1)
    parts = token_weights(TokenStats(**copies | {"advantage": signs, "measure": measure}), recipe)
    size = scene.measure.shape[1]
    up, down = (
        TokenWeights(**{name: x if x.shape[1] == 1 else x[:, cut] for name, x in vars(parts).items()})
        for cut in (slice(size), slice(size, 2 * size))
    )
    return up, down


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How an update compares with a gradient, each `[M]`.

    `error` = min_c ‖c u - g‖ / ‖g‖, `scale` that c, `raw` the same with c = 1, `cosine` of the angle.
    """

    error: Tensor
    raw: Tensor
    scale: Tensor
    cosine: Tensor


def compare(u: Tensor, g: Tensor) -> Fit:
    """Compare expected updates `[M, P]` with gradients `[M, P]`."""
    uu, gg, ug = (u * u).sum(-1), (g * g).sum(-1), (u * g).sum(-1)
    scale = torch.where(uu > 0, ug / uu, 0.0)
    norm = gg.sqrt()
    return Fit(
        error=(scale[:, None] * u - g).norm(dim=-1) / norm,
        raw=(u - g).norm(dim=-1) / norm,
        scale=scale,
        cosine=torch.where(uu > 0, ug / (uu.sqrt() * norm), 0.0),
    )


def fits(u: Tensor, g: Tensor, natural: Tensor) -> dict[str, Tensor]:
    """The named comparisons of one update `[P]` with the gradients of its own and of the natural target."""
    own, other = (compare(u[None], target[None]) for target in (g, natural))
    return {
        "gradient_error": own.error[0],
        "gradient_error_raw": own.raw[0],
        "update_scale": own.scale[0],
        "cosine": own.cosine[0],
        "gradient_error_natural": other.error[0],
        "update_scale_natural": other.scale[0],
        "cosine_natural": other.cosine[0],
        "gradient_norm": g.norm(),
    }


@dataclass(frozen=True, kw_only=True)
class Values:
    """Objectives of one target, each `[M]` in units of reward.

    `error` = J(π) - J(μ_old) - E_μ[R Σ_t (ρ_t - 1)], signed, with π the target itself: the part of the sequence-level
    objective that its first-order expansion misses. `replay_bias` = J(π natural) - J(π).
    """

    j_seq: Tensor
    j_seq_natural: Tensor
    j_mu: Tensor
    j_mu_theta: Tensor
    j_token: Tensor
    error: Tensor
    replay_bias: Tensor


def values(scene: Scene, mode: Mode) -> Values:
    """J of the target, of the natural target and of both inference policies; eq. (3); the error of its premise."""
    target, natural = scene.target[mode].logp.detach(), scene.target["disabled"].logp.detach()
    policies = (target, natural, scene.mu_old.logp, scene.mu.logp)
    sums = torch.zeros(6, target.shape[0], dtype=torch.float64)
    for part in scene.parts():
        rho = (gather(target, part.tree) - gather(scene.mu_old.logp, part.tree)).exp()
        weighted = part.measure * part.rewards
        j = [value(logp, part.tree, part.rewards) for logp in policies]
        j_token = (weighted * torch.where(part.tree.mask, rho, 0.0).sum(-1)).sum(-1)
        linear = (weighted * torch.where(part.tree.mask, rho - 1, 0.0).sum(-1)).sum(-1)
        sums = sums + torch.stack([*j, j_token, linear])
    j_seq, j_natural, j_mu, j_mu_theta, j_token, linear = sums
    return Values(
        j_seq=j_seq,
        j_seq_natural=j_natural,
        j_mu=j_mu,
        j_mu_theta=j_mu_theta,
        j_token=j_token,
        error=j_seq - j_mu - linear,
        replay_bias=j_natural - j_seq,
    )
