"""Likelihood ratios: which two policies, and over which tokens of the response.

δ below is the log-ratio `[..., B, T]` in nats, ρ_t = exp δ_t. A span makes of masked δ the logarithm of its product,
same shape. Logarithms are float64 whatever the log-probs are, since a product is over thousands of tokens; they are
exponentiated last, and there held at `BOUND`, so that a product saturates instead of overflowing.

A probability of 0 is a log-prob of -inf, as that of a token that top-k or top-p leaves out. A ratio whose numerator is
0 is 0, and so is every product it enters; one whose denominator alone is 0 is past any bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .stats import TokenStats

LOG_BOUND = 20.0  # where verl holds it too; verl's other side, -20, would lift a ratio of 0 to 2e-9
BOUND = math.exp(LOG_BOUND)  # 4.9e8: the largest ratio, in float32 and in float64
PAST = 1e4  # nats: past the bound and, below 0, past underflow; a larger one would round others away in a sum


def log_ratio(stats: TokenStats, of: str) -> Tensor:
    """log ρ_t of `theta/mu`, `theta/old` or `old/mu`, zero off the mask; eq. (5) of arXiv 2512.01374.

    Args:
        stats: log-probabilities under the three policies.
        of: numerator and denominator.

    Returns:
        float64 `[..., B, T]` nats; -inf where the numerator is 0. No gradient flows through it.
    """
    above, below = (getattr(stats, f"logp_{name}").detach().double() for name in of.split("/"))
    delta = torch.where(above == -torch.inf, -torch.inf, (above - below).clamp(-PAST, PAST))
    return torch.where(stats.mask, delta, 0.0)


def token(delta: Tensor, stats: TokenStats, steps: int) -> Tensor:
    """log of ρ_t, the token's own ratio; eq. (3)."""
    return delta


def prefix(delta: Tensor, stats: TokenStats, steps: int) -> Tensor:
    """log of ∏_{s≤t} ρ_s: what eq. (2) asks for once future ratios are averaged into Q^π (CTPO)."""
    return delta.cumsum(-1)


def sequence(delta: Tensor, stats: TokenStats, steps: int) -> Tensor:
    """log of ∏_s ρ_s on every token: the unbiased ratio of eq. (2)."""
    return delta.sum(-1, keepdim=True).expand_as(delta)


def geometric(delta: Tensor, stats: TokenStats, steps: int) -> Tensor:
    """log of (∏_s ρ_s)^{1/|y|} on every token (GSPO, arXiv 2507.18071 eq. 7)."""
    length = stats.mask.sum(-1, keepdim=True).clamp(min=1)
    return (delta.sum(-1, keepdim=True) / length).expand_as(delta)


def turn(delta: Tensor, stats: TokenStats, steps: int) -> Tensor:
    """log of ∏ ρ_s over the response tokens of each token's own turn."""
    return _by_turn(delta, stats.turns)


def turn_geometric(delta: Tensor, stats: TokenStats, steps: int) -> Tensor:
    """log of the geometric mean of ρ_s over each token's own turn (Turn-PPO, arXiv 2511.20718 eq. 4)."""
    return _by_turn(delta, stats.turns) / _by_turn(stats.mask.to(delta), stats.turns).clamp(min=1)


def _by_turn(x: Tensor, turns: Tensor) -> Tensor:
    """The sum of x over the tokens of each token's turn."""
    total = x.new_zeros(*x.shape[:-1], x.shape[-1] + 1)
    return total.scatter_add(-1, turns, x).gather(-1, turns)


def forward(delta: Tensor, stats: TokenStats, steps: int) -> Tensor:
    """log of ∏_{s=t}^{t+n-1} ρ_s over the next n response tokens, the token itself first (NFPO).

    n = 1 is the token ratio. n ≥ |y| replaces Q^μ by Q^π exactly and leaves the state distribution at μ's.
    """
    mask = stats.mask
    rank = mask.long().cumsum(-1)
    # the last position whose rank is at most rank_t + n - 1; environment tokens carry δ = 0
    reach = rank + min(steps, mask.shape[-1]) - 1
    last = torch.searchsorted(rank.contiguous(), reach.contiguous(), right=True) - 1

    def window(x: Tensor) -> Tensor:
        total = x.cumsum(-1)
        return total.gather(-1, last.expand_as(total)) - total + x

    nothing = delta == -torch.inf  # counted apart: a difference of sums that hold -inf is no number
    return torch.where(window(nothing.long()) > 0, -torch.inf, window(torch.where(nothing, 0.0, delta)))


def min_prefix(delta: Tensor, stats: TokenStats, steps: int) -> Tensor:
    """log of ρ_t · min_{s<t} ρ_s, the minimum over an empty prefix being 1 (MinPRO)."""
    seen = torch.where(stats.mask, delta, torch.inf).cummin(-1).values
    before = torch.cat([torch.full_like(seen[..., :1], torch.inf), seen[..., :-1]], dim=-1)
    return delta + torch.where(before == torch.inf, 0.0, before)


FUNCTIONS: dict[str, Callable[[Tensor, TokenStats, int], Tensor]] = {
    "token": token,
    "prefix": prefix,
    "sequence": sequence,
    "geometric": geometric,
    "turn": turn,
    "turn_geometric": turn_geometric,
    "forward": forward,
    "min_prefix": min_prefix,
}


def log_product(stats: TokenStats, of: str, span: str, steps: int = 1) -> Tensor:
    """The logarithm of `ratio` before it is held at the bound, float64 `[..., B, T]` nats; arguments as there."""
    return FUNCTIONS[span](log_ratio(stats, of), stats, steps)


def ratio(stats: TokenStats, of: str, span: str, steps: int = 1) -> Tensor:
    """The ratio of two policies over a span of tokens, at most `BOUND`; `of = "none"` is 1.

    Args:
        stats: the batch.
        of: `none`, `theta/mu`, `theta/old` or `old/mu`.
        span: a key of `core.method.parts.SPANS`.
        steps: tokens of the `forward` span.

    Returns:
        `[..., B, T]`, without gradient.

    Example:
        >>> from firstorder.core.method.stats import TokenStats
        >>> logp = torch.log(torch.tensor([[0.5, 0.5]]))
        >>> mu = torch.log(torch.tensor([[0.25, 1.0]]))
        >>> mask = torch.ones(1, 2, dtype=torch.bool)
        >>> s = TokenStats(logp_theta=logp, logp_old=logp, logp_mu=mu, mask=mask, advantage=torch.ones(1))
        >>> ratio(s, "theta/mu", "prefix").tolist()
        [[2.0, 1.0]]
    """
    if of == "none":
        return torch.ones_like(stats.logp_theta)
    return bounded(log_product(stats, of, span, steps)).to(stats.logp_theta.dtype)


def bounded(log: Tensor) -> Tensor:
    """exp of a logarithm, held at `BOUND`."""
    return log.exp().clamp(max=BOUND)


def saturated(factor: Tensor) -> Tensor:
    """Where a ratio or a product of ratios has reached `BOUND`, in its own dtype; bool."""
    return factor >= factor.new_full((), BOUND)  # filled where it is: a number sent there would be waited for
