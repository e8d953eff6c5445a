"""Sums over the tokens of responses, with what it takes to say how far they vary from response to response.

Shapes: B responses, L positions, Q statistics.

A response is the unit: its tokens share a prompt, a policy and an engine. With x_r its sums and X = Σ x_r, a
function f(X) has the variance ∇fᵀ (Σ_r x_r x_rᵀ) ∇f to first order, where ∇f·X = 0, as it is of ratios of sums. So
Σ x_r x_rᵀ is all that has to be kept, and what is compared may be chosen once X is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from firstorder.core.formats.chunk import Chunk

from .finding import Sums

FEW = 8  # responses below which a spread between responses says nothing
LIMIT = 30.0  # nats of a log-ratio, beyond which its exponential decides a sum alone


def gather(kept: Tensor, statistics: Sequence[Tensor]) -> Sums:
    """Sums over the `kept` tokens, bool `[B, L]`, of each statistic `[B, L]`: `total` `[Q]`, `square` `[Q, Q]` over
    responses, and how many `clusters` have any such token."""
    each = torch.stack([torch.where(kept, x, 0.0).sum(-1) for x in statistics], dim=-1).double()
    return {"total": each.sum(0), "square": each.T @ each, "clusters": kept.any(-1).sum()}


def log_ratio(chunk: Chunk) -> Tensor:
    """D = log π_old - log μ, `[B, L]` nats, 0 off the usable tokens."""
    assert chunk.logp_mu is not None
    assert chunk.logp_old is not None
    return torch.where(chunk.usable, chunk.logp_old - chunk.logp_mu, 0.0)


def sized(chunk: Chunk) -> tuple[Tensor, Tensor]:
    """|D| and what rounding moves it in proportion to, 1 - p of the trainer, both `[B, L]`, 0 off the usable tokens."""
    assert chunk.logp_old is not None
    return log_ratio(chunk).abs(), torch.where(chunk.usable, -chunk.logp_old.expm1(), 0.0)


def compared(sums: Sums, parts: tuple[Sequence[int], Sequence[int]], more: float) -> tuple[float, float]:
    """How many times as large a ratio of sums is in one part as in another, and how sure it is more than `more` times.

        r = (a/b) / (c/d),      sigmas = (a/b - more c/d) / spread, to first order in the sums of a response

    Args:
        sums: from `gather`: a numerator for each of G parts, then a denominator for each.
        parts: those that are together on the one side, a and b, and on the other, c and d.
        more: times.

    Returns:
        r, infinite where c is 0 and a is not; and standard deviations, 0 where there are too few responses.
    """
    above, below = sums["total"].view(2, -1)
    one, other = (torch.zeros_like(above).index_fill(0, torch.tensor(part), 1.0) for part in parts)
    a, b, c, d = (float(x @ y) for y in (one, other) for x in (above, below))
    if b <= 0 or d <= 0:
        return 0.0, 0.0
    gap = a / b - more * c / d
    slope = torch.cat([one / b - more * other / d, more * c / d**2 * other - a / b**2 * one])
    spread = math.sqrt(max(0.0, float(slope @ sums["square"] @ slope)))
    ratio = (a / b) / (c / d) if c > 0 else math.copysign(math.inf, a)
    return ratio, normal_score(gap / spread, int(sums["clusters"])) if spread > 0 else 0.0


def normal_score(t: float, count: int) -> float:
    """As unlikely a value of a normal distribution as a t statistic of `count` responses; 0 of fewer than 8.

        z = (8 ν + 1) / (8 ν + 3) √(ν log(1 + t² / ν)),      ν = count - 1

    Source:
        Wallace, Ann. Math. Stat. 30 (1959) 1121.
    """
    if count < FEW:
        return 0.0
    degrees = count - 1
    return math.copysign((8 * degrees + 1) / (8 * degrees + 3) * math.sqrt(degrees * math.log1p(t * t / degrees)), t)


def t_score(z: float, count: int) -> float:
    """The t statistic of `count` responses that is as unlikely as a normal one of z; infinite of fewer than 8."""
    if count < FEW:
        return math.inf
    degrees = count - 1
    return math.sqrt(degrees * math.expm1((z * (8 * degrees + 3) / (8 * degrees + 1)) ** 2 / degrees))
