"""The tokens that a rollout engine samples from: min-p, top-k and top-p, in vLLM's order.

    min-p    A = {a: μ(a|c) >= min_p · max_b μ(b|c)}
    top-k    B = {a ∈ A: at least as likely as the k-th likeliest of A}
    top-p    C = {a ∈ B: the mass of B, renormalised, before a is below top_p}, likeliest first

The token that crosses `top_p` is in C; of equally likely tokens around the k-th all are in B, and C takes those of
higher ids first. μ is at its temperature.

Shapes: `...` any axes, V vocabulary, C kept tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from firstorder.sim.config import Sim

FLOOR = -800.0  # nats, of what is left out: its probability is 0 in float64, and its logarithm is finite


def keeps(logp: Tensor, sim: Sim) -> Tensor | None:
    """The tokens that are left of log-probs `[..., V]`, bool; None where all are."""
    if not sim.truncates:
        return None
    keep = logp >= (logp.amax(-1, keepdim=True) + math.log(sim.min_p) if sim.min_p else -torch.inf)
    if sim.sample_top_k:
        left = torch.where(keep, logp, -torch.inf)
        keep = keep & (logp >= left.topk(min(sim.sample_top_k, logp.shape[-1])).values[..., -1:])
    if sim.top_p < 1:
        p, order = torch.where(keep, logp, -torch.inf).softmax(-1).sort(dim=-1, stable=True)
        out = p.cumsum(-1) <= 1 - sim.top_p
        out[..., -1] = False
        keep = keep & ~torch.zeros_like(keep).scatter(-1, order, out)
    return keep


def restricted(logp: Tensor, keep: Tensor | None) -> Tensor:
    """Log-probs `[..., V]` renormalised over the tokens of `keep`; what is left out has `FLOOR` and no gradient."""
    if keep is None:
        return logp
    total = torch.where(keep, logp, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.where(keep, logp - total, FLOOR)


def edges(logp: Tensor) -> Tensor:
    """The cumulative distribution of log-probs `[..., V]` that may be restricted, 1 from the last token that is left:
    no rounding draws one that is not."""
    there = logp > FLOOR
    last = there.shape[-1] - 1 - there.flip(-1).long().argmax(-1, keepdim=True)
    return torch.where(torch.arange(logp.shape[-1]) >= last, 1.0, logp.exp().cumsum(-1))


def named(keep: Tensor | None) -> Tensor | None:
    """The ids of the tokens of `keep` `[..., V]`, ascending: int32 `[..., C]`, -1 behind them, and -1 alone where
    nothing is left out."""
    if keep is None:
        return None
    vocab = keep.shape[-1]
    fewer = keep & ~keep.all(-1, keepdim=True)
    most = max(1, int(fewer.sum(-1).max()))
    ids = torch.where(fewer, torch.arange(vocab), vocab).sort(-1).values[..., :most]
    return torch.where(ids < vocab, ids, -1).int()
