"""Likelihood ratios: which two policies, and over which tokens of the response.

Every function takes masked per-token log-ratios `[..., B, T]` in nats and returns ratios of the same shape.
δ below is the log-ratio, ρ_t = exp δ_t. Sums are exponentiated last, and a log-ratio is held below
`MAX_LOG_RATIO` so that a product over thousands of tokens saturates instead of overflowing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .stats import TokenStats

MAX_LOG_RATIO = 80.0  # exp(80) = 5.5e34 is finite in float32


def log_ratio(stats: TokenStats, of: str) -> Tensor:
    """log ρ_t of `theta/mu`, `theta/old` or `old/mu`, zero off the mask; eq. (5) of arXiv 2512.01374.

    Args:
        stats: log-probabilities under the three policies.
        of: numerator and denominator.

    Returns:
        `[..., B, T]` nats; no gradient flows through it.
    """
    above, below = of.split("/")
    delta = getattr(stats, f"logp_{above}") - getattr(stats, f"logp_{below}")
    return torch.where(stats.mask, delta, 0.0).detach()


def token(delta: Tensor, mask: Tensor, steps: int) -> Tensor:
    """ρ_t, the token's own ratio; eq. (3)."""
    return _exp(delta)


def prefix(delta: Tensor, mask: Tensor, steps: int) -> Tensor:
    """∏_{s≤t} ρ_s: what eq. (2) asks for once future ratios are averaged into Q^π (CTPO)."""
    return _exp(delta.cumsum(-1))


def sequence(delta: Tensor, mask: Tensor, steps: int) -> Tensor:
    """∏_s ρ_s on every token: the unbiased ratio of eq. (2)."""
    return _exp(delta.sum(-1, keepdim=True).expand_as(delta))


def geometric(delta: Tensor, mask: Tensor, steps: int) -> Tensor:
    """(∏_s ρ_s)^{1/|y|} on every token (GSPO, arXiv 2507.18071 eq. 7)."""
    length = mask.sum(-1, keepdim=True).clamp(min=1)
    return _exp((delta.sum(-1, keepdim=True) / length).expand_as(delta))


def forward(delta: Tensor, mask: Tensor, steps: int) -> Tensor:
    """∏_{s=t}^{t+n-1} ρ_s over the next n response tokens, the token itself first (NFPO).

    n = 1 is the token ratio. n ≥ |y| replaces Q^μ by Q^π exactly and leaves the state distribution at μ's.
    """
    rank = mask.long().cumsum(-1)
    total = delta.cumsum(-1)
    # the last position whose rank is at most rank_t + n - 1; environment tokens carry δ = 0
    last = torch.searchsorted(rank.contiguous(), (rank + steps - 1).contiguous(), right=True) - 1
    return _exp(total.gather(-1, last.expand_as(total)) - total + delta)


def min_prefix(delta: Tensor, mask: Tensor, steps: int) -> Tensor:
    """ρ_t · min_{s<t} ρ_s, the minimum over an empty prefix being 1 (MinPRO)."""
    seen = torch.where(mask, delta, torch.inf).cummin(-1).values
    before = torch.cat([torch.full_like(seen[..., :1], torch.inf), seen[..., :-1]], dim=-1)
    return _exp(delta + torch.where(before.isinf(), 0.0, before))


SPANS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "token": token,
    "prefix": prefix,
    "sequence": sequence,
    "geometric": geometric,
    "forward": forward,
    "min_prefix": min_prefix,
}


def ratio(stats: TokenStats, of: str, span: str, steps: int = 1) -> Tensor:
    """The ratio of two policies over a span of tokens; `of = "none"` is 1.

    Args:
        stats: the batch.
        of: `none`, `theta/mu`, `theta/old` or `old/mu`.
        span: a key of `SPANS`.
        steps: tokens of the `forward` span.

    Returns:
        `[..., B, T]`, without gradient.

    Example:
        >>> from firstorder.core.stats import TokenStats
        >>> logp = torch.log(torch.tensor([[0.5, 0.5]]))
        >>> mu = torch.log(torch.tensor([[0.25, 1.0]]))
        >>> mask = torch.ones(1, 2, dtype=torch.bool)
        >>> s = TokenStats(logp_theta=logp, logp_old=logp, logp_mu=mu, mask=mask, advantage=torch.ones(1))
        >>> ratio(s, "theta/mu", "prefix").tolist()
        [[2.0, 1.0]]
    """
    if of == "none":
        return torch.ones_like(stats.logp_theta)
    return SPANS[span](log_ratio(stats, of), stats.mask, steps)


def _exp(log: Tensor) -> Tensor:
    return log.clamp(max=MAX_LOG_RATIO).exp()
