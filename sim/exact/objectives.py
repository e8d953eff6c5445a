"""Objectives and their gradients, exact: sums over every response, by the sums of a world.

Shapes: M members, N contexts, V vocabulary, X prompts, n reward levels, B responses, T tokens, P parameters.
Nothing is sampled; every gradient is one vector-Jacobian product through the contexts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .edges import vjp
from .scene import Mode, Scene
from .world import World, scatter, worth_ahead

ORDER = 4  # terms of the expansion that are named


def value(logp: Tensor, world: World) -> Tensor:
    """J = E_x Σ_y p(y|x) R(x, y) of a policy with edge log-probs `[M, N, V]`; eq. (1); `[M]`."""
    return (world.earned(logp.exp()) * world.levels[:, None]).sum(1).mean(-1)


def slopes(logp: Tensor, world: World) -> Tensor:
    """∂J/∂log π(edge) of a policy with edge log-probs `[M, N, V]`, in the same shape."""
    kernel = logp.exp()
    return kernel * worth_ahead(kernel, world)


def state_values(logp: Tensor, world: World) -> Tensor:
    """V(c) = E[R | c] of a policy with edge log-probs `[M, N, V]`, `[M, N]`; 0 at contexts that it cannot reach.

    Where a context is come to at several steps, the mean over them, each as likely as it is.
    """
    earned, reached = slopes(logp, world).sum(-1), world.visits(logp.exp())
    return torch.where(reached > 0, earned / reached, 0.0)


def gradient(scene: Scene, mode: Mode) -> Tensor:
    """∇J_seq of a target, `[M, P]`; eq. (2) with (π/μ) μ = π: every token weighs π(y) R."""
    target = scene.target[mode]
    return vjp(target, slopes(target.logp.detach(), scene.world), scene.weights)


def direction(scene: Scene, mode: Mode, weight: Tensor) -> Tensor:
    """Σ_y Σ_t weight · ∇ log π_θ(y_t | c_t) of a target for `[M, B, T]` weights, probability included; `[M, P]`."""
    return vjp(scene.target[mode], scatter(weight, scene.responses, scene.world.contexts), scene.weights)


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
    world, mu = scene.world, scene.mu_old.logp
    target, natural = (scene.target[m].logp.detach() for m in (mode, "disabled"))
    j_seq = value(target, world)
    j_natural = j_seq if mode == "disabled" else value(natural, world)
    j_mu = value(mu, world)
    ahead = scene.worth
    met = scene.met(target)
    rho = (met - mu).exp()
    linear = (ahead * mu.exp() * (rho - 1)).sum((-2, -1))
    return Values(
        j_seq=j_seq,
        j_seq_natural=j_natural,
        j_mu=j_mu,
        j_mu_theta=value(scene.mu.logp, world) if scene.stale else j_mu,
        j_token=(ahead * met.exp()).sum((-2, -1)),
        error=j_seq - j_mu - linear,
        replay_bias=j_natural - j_seq,
    )


def terms(scene: Scene, mode: Mode, order: int = ORDER) -> Tensor:
    """e_1, ..., e_order of the expansion of J(π) around μ_old, `[M, order]` in units of reward:

        J(π) = Σ_k e_k,      e_0 = J(μ),      e_k = E_μ[R Σ_{t_1 < ... < t_k} Π_i (ρ_{t_i} - 1)]

    so that the error of the first-order objective is e_2 + e_3 + ...
    """
    mu, world = scene.mu_old.logp, scene.world
    change = (scene.met(scene.target[mode].logp.detach()) - mu).expm1()
    return world.expansion(mu.exp(), change, order)[:, 1:]
