"""Published bounds on the error of the first-order expansion, and how tight each is.

All bound |J(π) - J(μ) - E_μ[R Σ_t (ρ_t - 1)]| for a horizon T without discount and R in [0, 1]; the published constants
are for |R| ≤ 1 and halve here, since 1/2 can be subtracted from R. With TV_t and KL_t the divergences between π and
μ at step t, in nats:

    ε = max TV,   δ = max KL(μ‖π),   D_t = E_μ TV_t,   K = Σ_t E_μ KL_t.

Reference:
    Trust Region Masking, arXiv 2512.23075; DPPO, arXiv 2602.04879.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .edges import kl
from .scene import Mode, Scene


def bounds(scene: Scene, mode: Mode) -> dict[str, Tensor]:
    """Every bound on `Values.error` of a target, `[M]` in units of reward.

    Args:
        scene: the engines on a world.
        mode: whose target.
    """
    pi, mu, world = scene.target[mode].logp.detach(), scene.mu_old.logp, scene.world
    total_variation = 0.5 * (pi.exp() - mu.exp()).abs().sum(-1)
    divergence = kl(mu, pi).clamp(min=0)
    steps = torch.arange(1, world.horizon + 1, dtype=torch.float64)
    horizon = float(world.horizon)
    eps = total_variation.amax(-1, keepdim=True)
    delta = divergence.amax(-1, keepdim=True)
    kernel = mu.exp()
    mean_tv = world.by_step(kernel, total_variation)
    mean_kl = (scene.reached * divergence).sum(-1)
    one = torch.ones(())
    half = (delta / 2).sqrt()
    left = horizon - steps
    return {
        "classical": horizon * (horizon - 1) * eps.square()[:, 0],
        "pinsker_marginal": 2
        * torch.minimum(one, half)[:, 0]
        * torch.minimum(one, ((steps - 1) * delta / 2).sqrt()).sum(-1),
        "mixed": 2 * horizon * torch.minimum(one, half)[:, 0] * torch.minimum(one, (mean_kl / 2).sqrt()),
        "coupling": 2 * torch.minimum(one, eps)[:, 0] * torch.minimum(one, (steps - 1) * eps).sum(-1),
        "adaptive": 2 * (mean_tv * torch.minimum(one, torch.minimum(left * eps, (left * delta / 2).sqrt()))).sum(-1),
        "linear": 2 * mean_tv.sum(-1),
    }


def sequence_total_variation(scene: Scene, mode: Mode) -> Tensor:
    """TV between the natural target and a replayed one over whole responses, which bounds |replay_bias|; `[M]`."""
    return 0.5 * (scene.probability("disabled") - scene.probability(mode)).abs().sum(-1)
