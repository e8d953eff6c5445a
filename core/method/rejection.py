"""Rejections: which tokens or responses are left out, whatever their weight would be.

Beside a correction, which says how much a token counts, a rejection says whether it does: 1 or 0. What it judges is
v_t, made of the log-ratio D_t of two policies `[..., B, T]` in nats, or of their whole distributions; then, where a
response is judged as a whole, one number of all its v_t. What lies between the bounds is kept. No gradient flows
through it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from firstorder.core.errors import DataError

from .ratio import log_ratio
from .sections import Rejection
from .stats import TokenStats


def log(stats: TokenStats, rule: Rejection) -> Tensor:
    """D = log of the token's ratio; what is compared is exp of what a response makes of it."""
    return log_ratio(stats, rule.of)


def k1(stats: TokenStats, rule: Rejection) -> Tensor:
    """-D: the unbiased estimate of the divergence of the sampled policy from the other."""
    return -log_ratio(stats, rule.of)


def k2(stats: TokenStats, rule: Rejection) -> Tensor:
    """D² / 2."""
    return log_ratio(stats, rule.of).square() / 2


def k3(stats: TokenStats, rule: Rejection) -> Tensor:
    """exp D - 1 - D."""
    d = log_ratio(stats, rule.of)
    return d.expm1() - d


def kl(stats: TokenStats, rule: Rejection) -> Tensor:
    """KL(μ(·|c_t) ‖ π_θ(·|c_t)) of the whole distributions (Trust Region Masking, arXiv 2512.23075)."""
    if stats.kl_mu is None:
        raise DataError(f"rejection `{rule.kind}` needs `kl_mu`, the full-distribution KL of every token; got None")
    return torch.where(stats.mask, stats.kl_mu, 0.0).double()


FUNCTIONS: dict[str, Callable[[TokenStats, Rejection], Tensor]] = {
    "none": log,
    "ratio": log,
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "kl": kl,
}
"""v_t of each kind, float64, 0 off the mask."""


def token(v: Tensor, mask: Tensor) -> Tensor:
    """v_t itself."""
    return v


def total(v: Tensor, mask: Tensor) -> Tensor:
    """Σ_t v_t on every token."""
    return v.sum(-1, keepdim=True).expand_as(v)


def mean(v: Tensor, mask: Tensor) -> Tensor:
    """mean_t v_t on every token."""
    return (v.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)).expand_as(v)


def largest(v: Tensor, mask: Tensor) -> Tensor:
    """max_t v_t on every token."""
    return torch.where(mask, v, -torch.inf).amax(-1, keepdim=True).expand_as(v)


OVERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"token": token, "sum": total, "mean": mean, "max": largest}


def kept(stats: TokenStats, rule: Rejection) -> Tensor:
    """1 where low ≤ v ≤ high, else 0, `[..., B, T]`; where a rule minds negative advantages alone, 1 at all others.

    Example:
        >>> logp = torch.log(torch.tensor([[0.5, 0.5]]))
        >>> mu = torch.log(torch.tensor([[0.25, 0.5]]))
        >>> mask = torch.ones(1, 2, dtype=torch.bool)
        >>> s = TokenStats(logp_theta=logp, logp_old=logp, logp_mu=mu, mask=mask, advantage=torch.ones(1))
        >>> kept(s, Rejection(kind="ratio", over="token", high=1.5)).tolist()
        [[0.0, 1.0]]
    """
    if rule.kind == "none":
        return torch.ones_like(stats.logp_theta)
    v = OVERS[rule.over](FUNCTIONS[rule.kind](stats, rule), stats.mask)
    v = v.exp() if rule.kind == "ratio" else v
    inside = (v >= rule.low) & (v <= rule.high)
    spared = (stats.token_advantage >= 0) & (rule.where == "negative")
    return (inside | spared).to(stats.logp_theta.dtype)
