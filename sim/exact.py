"""Exact expectations over the exhaustive batch: objectives, gradients, expected updates.

Shapes: M members, B responses, T tokens, N contexts, V vocabulary, P parameters.
Nothing is sampled; every gradient is one vector-Jacobian product through the tree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core.recipe import Recipe
from firstorder.core.stats import TokenStats
from firstorder.core.surrogate import token_weights

from .engine import vjp
from .groups import expected_parts
from .scene import Mode, Scene, token_stats
from .tree import Tree, gather, scatter


def value(logp: Tensor, tree: Tree, rewards: Tensor) -> Tensor:
    """J = E_x Σ_y p(y|x) R(x, y) of a policy with edge log-probs `[M, N, V]`; eq. (1); `[M]`."""
    return (gather(logp, tree).sum(-1).exp() * rewards).sum(-1) / len(tree.prompts)


def gradient(scene: Scene, mode: Mode) -> Tensor:
    """∇J_seq of a target, `[M, P]`; eq. (2) with (π/μ) μ = π: every token weighs π(y) R."""
    weight = (scene.probability(mode) * scene.rewards)[..., None].expand(-1, -1, scene.tree.horizon)
    return direction(scene, mode, weight)


def direction(scene: Scene, mode: Mode, weight: Tensor) -> Tensor:
    """Σ_y Σ_t weight · ∇ log π_θ(y_t | c_t) of a target for `[M, B, T]` weights, probability included; `[M, P]`."""
    return vjp(scene.target[mode], scatter(weight, scene.tree), scene.weights)


def expected_weights(scene: Scene, recipe: Recipe) -> Tensor:
    """μ_old(y) E[w_t | y] over the rest of the group, `[M, B, T]`.

    Every shipped weight is homogeneous in the advantage, so E[w] = E[A⁺] w(+1) + E[A⁻] w(-1): see `sim.groups`.
    """
    stats = token_stats(scene, recipe)
    plus, minus = advantage_parts(scene, recipe)
    up, down = signed_weights(stats, recipe)
    return scene.measure[..., None] * (plus[..., None] * up + minus[..., None] * down)


def signed_weights(stats: TokenStats, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Token weights at advantage +1 and at advantage -1, `[M, B, T]` each."""
    one = torch.ones_like(stats.advantage)
    up, down = (token_weights(stats.with_advantage(sign * one), recipe).weight for sign in (1, -1))
    return up, down


def advantage_parts(scene: Scene, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """E[A⁺ | y] and E[A⁻ | y] of every response over the other responses of its group, `[M, B]`."""
    levels, rank, chance = reward_levels(scene)
    plus, minus = expected_parts(levels, chance, recipe.advantage, recipe.schedule.group_size)
    return plus[:, scene.tree.prompt, rank], minus[:, scene.tree.prompt, rank]


def reward_levels(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """The reward levels `[n]`, the level of every response `[B]`, and μ_old's chance of each per prompt `[M, X, n]`."""
    levels, rank = torch.unique(scene.rewards, return_inverse=True)
    count = len(scene.tree.prompts)
    chance = torch.zeros(scene.measure.shape[0], count * len(levels), dtype=torch.float64)
    chance.index_add_(1, scene.tree.prompt * len(levels) + rank, scene.measure * count)
    return levels, rank, chance.view(-1, count, len(levels))


def update(scene: Scene, recipe: Recipe) -> Tensor:
    """u = E_μ[Σ_t w_t ∇ log π_θ(y_t)], the exact expected update of a recipe, `[M, P]`."""
    return direction(scene, recipe.router_replay.mode, expected_weights(scene, recipe))


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
    tree, rewards = scene.tree, scene.rewards
    target = scene.target[mode].logp.detach()
    j, natural = value(target, tree, rewards), value(scene.target["disabled"].logp.detach(), tree, rewards)
    rho = torch.where(tree.mask, (gather(target, tree) - gather(scene.mu_old.logp, tree)).exp(), 0.0)
    weighted = scene.measure * rewards
    j_token = (weighted * rho.sum(-1)).sum(-1)
    linear = (weighted * (rho - tree.mask.double()).sum(-1)).sum(-1)
    j_mu = value(scene.mu_old.logp, tree, rewards)
    return Values(
        j_seq=j,
        j_seq_natural=natural,
        j_mu=j_mu,
        j_mu_theta=value(scene.mu.logp, tree, rewards),
        j_token=j_token,
        error=j - j_mu - linear,
        replay_bias=natural - j,
    )
