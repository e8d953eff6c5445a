"""Corrections: what is made of an importance ratio before it multiplies the advantage.

A correction is a factor `[..., B, T]` on the weight. k is the ratio `of` over `span` that the recipe names;
ρ(y) is the sequence product of `of`. None of them carries a gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .ratio import bounded, log_product, ratio
from .sections import Correction
from .stats import TokenStats

LEAST_MEAN = 1e-8  # of factors that are divided by their mean, as in verl: smaller ones have been masked


def none(stats: TokenStats, c: Correction) -> Tensor:
    """1."""
    return torch.ones_like(stats.logp_theta)


def identity(stats: TokenStats, c: Correction) -> Tensor:
    """k, untouched (the π_prox/μ factor of decoupled PPO, arXiv 2505.24298)."""
    return ratio(stats, c.of, c.span)


def truncate(stats: TokenStats, c: Correction) -> Tensor:
    """max(low, min(k, high)), truncated importance sampling (TIS), on both sides where low is above 0."""
    return ratio(stats, c.of, c.span).clamp(c.low, c.high)


def mask(stats: TokenStats, c: Correction) -> Tensor:
    """k · 1[low ≤ k ≤ high] (IcePop on tokens; MIS on the sequence product)."""
    log = log_product(stats, c.of, c.span)
    k = log.exp()  # the ratio itself, not what it is held at
    return torch.where((k >= c.low) & (k <= c.high), bounded(log), 0.0).to(stats.logp_theta.dtype)


def vespo(stats: TokenStats, c: Correction) -> Tensor:
    """φ(W) = W^{c1} exp(c2 (1 - W)), W = ρ(y), with (c1, c2) chosen by the sign of the advantage (VESPO)."""
    log_w = log_product(stats, c.of, "sequence")
    w = log_w.clamp(max=30.0).exp()  # c2 > 0 has made the factor 0 by then
    positive = stats.token_advantage > 0
    c1, c2 = (
        torch.where(positive, log_w.new_full((), c.positive[i]), log_w.new_full((), c.negative[i])) for i in (0, 1)
    )
    power = torch.where(c1 == 0, 0.0, c1 * log_w)  # 0^0 = 1
    return bounded(power + c2 * (1.0 - w)).to(stats.logp_theta.dtype)


FUNCTIONS: dict[str, Callable[[TokenStats, Correction], Tensor]] = {
    "none": none,
    "ratio": identity,
    "truncate": truncate,
    "mask": mask,
    "vespo": vespo,
}


def correction(stats: TokenStats, c: Correction) -> Tensor:
    """The correction factor that a recipe names, `[..., B, T]`."""
    return FUNCTIONS[c.kind](stats, c)


def batch_mean(stats: TokenStats, c: Correction, factor: Tensor) -> Tensor:
    """What `mean_one` divides by, `[..., 1, 1]`: the mean of the factor over response tokens, or over responses where
    it is one a response; 1 without it, and where all factors are 0."""
    one = torch.ones_like(stats.logp_theta[..., :1, :1])
    if not c.mean_one:
        return one
    counted = stats.weights[..., None] * stats.mask
    if c.of_response:
        counted = counted / stats.lengths[..., None]
    total = counted.sum((-2, -1), keepdim=True)
    mean = torch.where(stats.mask, counted * factor, 0.0).sum((-2, -1), keepdim=True) / torch.where(
        total > 0, total, 1.0
    )
    return torch.where(mean > LEAST_MEAN, mean, one)
