"""Corrections: what is made of an importance ratio before it multiplies the advantage.

A correction is a factor `[..., B, T]` on the weight. k is the ratio `of` over `span` that the recipe names;
ρ(y) is the sequence product of `of`. None of them carries a gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from firstorder.core.errors import DataError

from .ratio import bounded, log_product, ratio
from .sections import Correction
from .stats import TokenStats


def none(stats: TokenStats, c: Correction) -> Tensor:
    """1."""
    return torch.ones_like(stats.logp_theta)


def identity(stats: TokenStats, c: Correction) -> Tensor:
    """k, untouched (the π_prox/μ factor of decoupled PPO, arXiv 2505.24298)."""
    return ratio(stats, c.of, c.span)


def truncate(stats: TokenStats, c: Correction) -> Tensor:
    """min(k, C), truncated importance sampling (TIS)."""
    return ratio(stats, c.of, c.span).clamp(max=c.high)


def mask(stats: TokenStats, c: Correction) -> Tensor:
    """k · 1[low ≤ k ≤ high] (IcePop on tokens; MIS on the sequence product)."""
    log = log_product(stats, c.of, c.span)
    return (bounded(log) * _inside(log, c)).to(stats.logp_theta.dtype)


def sequence_mask(stats: TokenStats, c: Correction) -> Tensor:
    """1[low ≤ ρ(y) ≤ high]: the whole response is kept or dropped, its weight unchanged."""
    return _inside(log_product(stats, c.of, "sequence"), c).to(stats.logp_theta.dtype)


def geometric_mask(stats: TokenStats, c: Correction) -> Tensor:
    """1[low ≤ ρ(y)^{1/|y|} ≤ high]: as `sequence_mask`, on the geometric mean."""
    return _inside(log_product(stats, c.of, "geometric"), c).to(stats.logp_theta.dtype)


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


def max_kl(stats: TokenStats, c: Correction) -> Tensor:
    """1[max_t KL(μ(·|c_t) ‖ π_θ(·|c_t)) ≤ high] (TRM-Max of Trust Region Masking, arXiv 2512.23075)."""
    worst = _kl(stats, c).amax(-1, keepdim=True)
    return (worst <= c.high).to(stats.logp_theta).expand_as(stats.logp_theta)


def mean_kl(stats: TokenStats, c: Correction) -> Tensor:
    """1[mean_t KL(μ(·|c_t) ‖ π_θ(·|c_t)) ≤ high] (TRM-Avg of Trust Region Masking, arXiv 2512.23075)."""
    mean = _kl(stats, c).sum(-1, keepdim=True) / stats.lengths[..., None]
    return (mean <= c.high).to(stats.logp_theta).expand_as(stats.logp_theta)


def _kl(stats: TokenStats, c: Correction) -> Tensor:
    if stats.kl_mu is None:
        raise DataError(f"correction `{c.kind}` needs `kl_mu`, the full-distribution KL of every token; got None")
    return torch.where(stats.mask, stats.kl_mu, 0.0)


FUNCTIONS: dict[str, Callable[[TokenStats, Correction], Tensor]] = {
    "none": none,
    "ratio": identity,
    "truncate": truncate,
    "mask": mask,
    "sequence_mask": sequence_mask,
    "geometric_mask": geometric_mask,
    "vespo": vespo,
    "max_kl": max_kl,
    "mean_kl": mean_kl,
}


def correction(stats: TokenStats, c: Correction) -> Tensor:
    """The correction factor that a recipe names, `[..., B, T]`."""
    return FUNCTIONS[c.kind](stats, c)


def _inside(log: Tensor, c: Correction) -> Tensor:
    """1 where the ratio itself, not what it is held at, lies between the bounds."""
    k = log.exp()
    return ((k >= c.low) & (k <= c.high)).to(k)
