"""Objectives and their gradients, exact: sums over every response of a tree.

Shapes: M members, B responses, T tokens, N contexts, V vocabulary, P parameters.
Nothing is sampled; every gradient is one vector-Jacobian product through the tree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .edges import vjp
from .scene import Mode, Scene
from .tree import Tree, chunks, gather, responses, scatter


def value(logp: Tensor, tree: Tree, rewards: Tensor) -> Tensor:
    """J = E_x Σ_y p(y|x) R(x, y) of a policy with edge log-probs `[M, N, V]`; eq. (1); `[M]`."""
    return (gather(logp, tree).sum(-1).exp() * rewards).sum(-1) / len(tree.prompts)


def state_values(logp: Tensor, tree: Tree, rewards: Tensor) -> Tensor:
    """V(c) = E[R | c] of a policy with edge log-probs `[M, N, V]`, `[M, N]`; 0 at contexts that it cannot reach."""
    earned, reached = (_taken(logp, tree, worth).sum(-1) for worth in (rewards, torch.ones_like(rewards)))
    return torch.where(reached > 0, earned / reached, 0.0)


def gradient(scene: Scene, mode: Mode) -> Tensor:
    """∇J_seq of a target, `[M, P]`; eq. (2) with (π/μ) μ = π: every token weighs π(y) R."""
    target = scene.target[mode]
    return vjp(target, slopes(target.logp.detach(), scene.tree, scene.rewards), scene.weights)


def slopes(logp: Tensor, tree: Tree, rewards: Tensor) -> Tensor:
    """∂J/∂log π(edge) of a policy with edge log-probs `[M, N, V]`, in the same shape."""
    return _taken(logp, tree, rewards) / len(tree.prompts)


def direction(scene: Scene, mode: Mode, weight: Tensor) -> Tensor:
    """Σ_y Σ_t weight · ∇ log π_θ(y_t | c_t) of a target for `[M, B, T]` weights, probability included; `[M, P]`."""
    return vjp(scene.target[mode], scatter(weight, scene.tree), scene.weights)


def _taken(logp: Tensor, tree: Tree, worth: Tensor) -> Tensor:
    """Σ of p(y|x) worth(y), `[B]`, over the responses that take each edge, `[M, N, V]`."""
    edges = torch.zeros((), dtype=torch.float64)
    for cut in chunks(tree, len(logp)):
        part = responses(tree, cut)
        weighed = gather(logp, part).sum(-1).exp() * worth[cut]
        edges = edges + scatter(weighed[..., None].expand(-1, -1, tree.horizon), part)
    return edges


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
