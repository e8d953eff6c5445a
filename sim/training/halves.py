"""Do the halves of a batch pull the same way? One more backward of an update that is made anyway.

Shapes: M members, B responses, T tokens, P parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.core.method.recipe import Schedule
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.terms import total_loss
from firstorder.core.quantities import Moments, Quantity
from firstorder.sim.config import Sim
from firstorder.sim.exact.coherence import cosine
from firstorder.sim.model.policy import Weights, gradient

NAME = "update/half_batch_cosine"
QUANTITIES: dict[str, Quantity] = {
    NAME: Quantity(
        formula="cosine of the gradients of the loss over the first and the second half of a mini-batch, by prompt, "
        "mean over updates; 0 where a half has none. Of sampled updates in the simulator, in steps that are evaluated",
        unit="1",
        source="firstorder; near 1 the batch is signal, near 0 noise",
    )
}


def comparable(sim: Sim, schedule: Schedule) -> bool:
    """Whether mini-batches have two halves: they are sampled, and hold two prompts or more."""
    return sim.update == "sampled" and schedule.prompts >= 2 * schedule.minibatches


def agreement(
    stats: TokenStats, weight: Tensor, bonus: Tensor | None, slope: Tensor, theta: Weights, group_size: int
) -> Moments:
    """cos(g_1, g_2) of the two halves of a mini-batch, by prompt.

        g = g_1 + g_2,   g_1 = -1/B Σ_{b in the first half} Σ_t w_bt ∇ log π_θ(y_bt),   g_2 = g - g_1

    Responses to one prompt share a baseline, so that only halves of whole groups are independent. Of an odd number of
    prompts the second half has one more.

    Args:
        stats: of the mini-batch, `logp_theta` with the graph that `slope` came from, `[M, B, T]`.
        weight: `[M, B, T]` of the whole mini-batch.
        bonus: `[M, B, T]`, that of each token's entropy; None without one.
        slope: g `[M, P]`, the gradient of its loss.
        theta: the leaves of that graph.
        group_size: G; groups lie side by side.
    """
    responses = weight.shape[-2]
    first = responses // group_size // 2 * group_size
    kept = (torch.arange(responses) < first)[:, None]
    half = gradient(total_loss(stats, weight * kept, None if bonus is None else bonus * kept).sum(), theta)
    found = cosine(half, slope - half)
    return {NAME: (found, torch.ones_like(found))}
