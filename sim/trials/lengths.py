"""How long responses are where they end by themselves, exactly: a distribution carried from token to token.

Shapes: M members, S contexts, V vocabulary, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim
from firstorder.sim.exact.scene import build, engines, grow
from firstorder.sim.tasks import task_of
from firstorder.sim.tasks.contexts import Contexts


def surviving(contexts: Contexts, probs: Tensor, horizon: int) -> Tensor:
    """P(|y| >= t) for t = 1 to T, `[M, T]`, with equally likely prompts.

    Args:
        contexts: where every token leads.
        probs: of every token at every context, `[M, S, V]`.
        horizon: T, where every response ends.
    """
    size = len(contexts.features)
    leads = contexts.follow.clamp(max=size).flatten().expand(len(probs), -1)  # every ending is one place, S
    at = torch.zeros(len(probs), size, dtype=probs.dtype)
    at[:, contexts.start] = 1 / len(contexts.start)
    alive = []
    for _ in range(horizon):
        alive.append(at.sum(-1))
        flows = (at[..., None] * probs).flatten(1)
        at = torch.zeros(len(probs), size + 1, dtype=probs.dtype).scatter_add(1, leads, flows)[:, :size]
    return torch.stack(alive, dim=-1)


def lengths(sim: Sim, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the length of responses of μ to begin with, in tokens, each `[M]`:

        E|y| = Σ_t P(|y| >= t),    E|y|² = Σ_t (2t - 1) P(|y| >= t)

    Args:
        sim: a world of contexts that merge.
        seeds: of the members, int64 `[M]`.
    """
    scene = build(sim, grow(sim), engines(sim, seeds), starting_weights(sim, seeds), modes=["disabled"])
    contexts = task_of(sim).contexts(torch.arange(sim.prompts))
    alive = surviving(contexts, scene.mu_old.logp.detach().exp(), sim.horizon)
    mean = alive.sum(-1)
    square = (alive * torch.arange(1, 2 * sim.horizon, 2)).sum(-1)
    return mean, (square - mean**2).clamp(min=0).sqrt()
