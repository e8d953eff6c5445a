"""How far the routes of two engines agree on the tokens that were sampled, and their KL where the routes differ: the
moments behind `route/*` and `kl_flipped`.

Shapes: `...` any leading axes (an ensemble), B responses, L positions, M MoE layers, K experts a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.core.errors import DataError
from firstorder.core.quantities import Moments
from firstorder.core.routing import flips

from .batch import RolloutBatch

THIN = 0.01  # router score: what a probability of 1/4 loses to rounding in FP8 (1 part in 16) is of this size


def agreement(batch: RolloutBatch, routes: Tensor, margin: Tensor, logp: Tensor, entropy: Tensor) -> Moments:
    """Flips, margins, entropy and the KL of flipped tokens, as (numerator, denominator) `[...]` over response tokens.

    Row t - 1 of the routes produced token t, so the rows before the tokens of the mask count; one that μ_old did not
    send is no flip and is not counted.

    Args:
        batch: as sampled, with the routes of μ_old.
        routes: `[..., B, L, M, K]` of π_old, live.
        margin: `[..., B, L, M]` of those choices: k-th minus (k+1)-th selection score.
        logp: `[..., B, L]` nats, log π_old of each token, with the recipe's replay.
        entropy: `[..., B, L]` nats, of the distribution that π_old gives each token.

    Raises:
        DataError: the batch has no routes.
    """
    if batch.routes is None:
        raise DataError("a batch without `routes` has no route agreement; enable the rollout engine's routed experts")
    rows = batch.mask[..., 1:]
    sent = (batch.routes[..., :-1, :, :] >= 0).all(-1).to(entropy)
    flipped = flips(routes[..., :-1, :, :], batch.routes[..., :-1, :, :]).to(entropy) * sent

    def per_token(x: Tensor, of: Tensor | None = None) -> tuple[Tensor, Tensor]:
        tokens = rows.to(entropy) if of is None else torch.where(rows, of, 0.0)
        return torch.where(rows, x, 0.0).sum((-2, -1)), tokens.sum((-2, -1))

    margin, hit = margin[..., :-1, :], flipped.amax(-1)
    apart = batch.logp_mu[..., 1:].double() - logp[..., 1:].double()
    moments = {
        "route/flip_rate": per_token(_share(flipped), _share(sent)),
        "route/tokens_flipped": per_token(hit, sent.amax(-1)),
        "route/gate_margin": per_token(margin.mean(-1)),
        "route/thin_margin": per_token(_share((margin < THIN).to(entropy))),
        "kl_flipped": per_token(torch.where(hit > 0, apart, 0.0), hit),
        "update/entropy": per_token(entropy[..., 1:]),
    }
    layers = range(flipped.shape[-1])
    return moments | {f"route/flip_rate_layer_{i}": per_token(flipped[..., i], sent[..., i]) for i in layers}


def _share(hits: Tensor) -> Tensor:
    """The mean of 0s and 1s over layers, `[..., M]` to `[...]`: exact in any order, and this one is fast."""
    return sum(hits.unbind(-1), start=torch.zeros((), dtype=hits.dtype, device=hits.device)) / hits.shape[-1]
