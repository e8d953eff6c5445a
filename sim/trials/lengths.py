"""How long responses are where they end by themselves, exactly.

Shapes: M members, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim
from firstorder.sim.exact.scene import build, engines, grow


def lengths(sim: Sim, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the length of responses of μ to begin with, in tokens, each `[M]`:

        P(|y| >= t) = Σ_c d_t(c),    E|y| = Σ_t P(|y| >= t),    E|y|² = Σ_t (2t - 1) P(|y| >= t)

    Args:
        sim: a world of contexts that merge.
        seeds: of the members, int64 `[M]`.
    """
    scene = build(sim, grow(sim), engines(sim, seeds), starting_weights(sim, seeds), modes=["disabled"])
    alive = scene.world.by_step(scene.mu_old.logp.exp(), torch.ones_like(scene.reached))
    mean = alive.sum(-1)
    square = (alive * torch.arange(1, 2 * sim.horizon, 2)).sum(-1)
    return mean, (square - mean**2).clamp(min=0).sqrt()
