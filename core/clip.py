"""Clips: how far the target may move before a token stops counting.

A clip takes the ratio that multiplies the advantage and returns it changed: masked to zero (MiniRL, PPO, GSPO,
DPPO, M2PO) or bounded (CISPO). The sign-aware masks share one rule: a token is dropped when its ratio has
already moved beyond the bound in the direction that its advantage pushes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .ratio import log_ratio, ratio
from .recipe import Clip, Recipe
from .stats import TokenStats


def sign_aware(advantage: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    """M_t of eq. (7): 0 where A > 0 and `upper`, 0 where A < 0 and `lower`, else 1."""
    drop = ((advantage > 0) & upper) | ((advantage < 0) & lower)
    return (~drop).to(advantage)


def none(stats: TokenStats, r: Tensor, c: Clip) -> Tensor:
    """No clip."""
    return r


def minirl(stats: TokenStats, r: Tensor, c: Clip) -> Tensor:
    """Weight · M_t with M_t read from the token ratio π_θ/π_old, whatever the weight is; eq. (7)."""
    k = ratio(stats, "theta/old", "token")
    return r * sign_aware(stats.token_advantage, k > 1 + c.high, k < 1 - c.low)


def ppo(stats: TokenStats, r: Tensor, c: Clip) -> Tensor:
    """The gradient of min(rA, clip(r, 1-low, 1+high) A): r, or zero where the bound is the minimum.

    On the geometric sequence ratio this is GSPO's clip (arXiv 2507.18071 eq. 5).
    """
    return r * sign_aware(stats.token_advantage, r > 1 + c.high, r < 1 - c.low)


def cispo(stats: TokenStats, r: Tensor, c: Clip) -> Tensor:
    """clip(r, 1-low, 1+high) as the weight itself, no token is dropped (CISPO, arXiv 2506.13585)."""
    return r.clamp(1 - c.low, 1 + c.high)


def tv(stats: TokenStats, r: Tensor, c: Clip) -> Tensor:
    """Sign-aware mask where the binary total variation |π_θ(y_t) - μ(y_t)| > high (DPPO, arXiv 2602.04879)."""
    p, q = stats.logp_theta.detach().exp(), stats.logp_mu.exp()
    far = (p - q).abs() > c.high
    return r * sign_aware(stats.token_advantage, far & (p > q), far & (p < q))


def kl(stats: TokenStats, r: Tensor, c: Clip) -> Tensor:
    """Sign-aware mask where KL(Bernoulli μ(y_t) ‖ Bernoulli π_θ(y_t)) > high (DPPO)."""
    p, q = stats.logp_theta.detach(), stats.logp_mu
    far = bernoulli_kl(q, p) > c.high
    return r * sign_aware(stats.token_advantage, far & (p > q), far & (p < q))


def bernoulli_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """q log(q/p) + (1-q) log((1-q)/(1-p)) from log q and log p, float64 nats; q is not 0.

    1 - p is made from log p, which tells it from 0 where p itself rounds to 1. What log p rounds to 0 is taken to lie a
    rounding away from it, so that two probabilities that both round to 1 are close, and not infinitely far.
    """
    log_q, log_p = (x.double().clamp(max=-torch.finfo(x.dtype).eps) for x in (log_q, log_p))
    q, rest_q = log_q.exp(), _log_rest(log_q)
    same = torch.where(q > 0, q * (log_q - log_p), 0.0)
    return same + rest_q.exp() * (rest_q - _log_rest(log_p))


def _log_rest(log_p: Tensor) -> Tensor:
    """log(1 - p) for p < 1; either form is exact to rounding on its side of p = 1/2."""
    return torch.where(log_p > -math.log(2.0), (-log_p.expm1()).log(), (-log_p.exp()).log1p())


def second_moment(stats: TokenStats, r: Tensor, c: Clip) -> Tensor:
    """Batch mask: the tokens of largest (log π_θ/μ)² are dropped until the mean over the rest is ≤ high (M2PO)."""
    square = log_ratio(stats, "theta/mu").square()
    share = (stats.weights[..., None] * stats.mask).expand_as(square)
    flat, weight = square.flatten(-2), share.flatten(-2)
    order = flat.argsort(-1)
    sorted_square, sorted_weight = flat.gather(-1, order), weight.gather(-1, order)
    floor = torch.finfo(flat.dtype).tiny
    mean = (sorted_square * sorted_weight).cumsum(-1) / sorted_weight.cumsum(-1).clamp(min=floor)
    # equal squares stay or go together, so that a response counted twice is one response of twice the measure
    last = torch.searchsorted(sorted_square.contiguous(), sorted_square.contiguous(), right=True) - 1
    mean = mean.gather(-1, last)
    keep = torch.zeros_like(flat).scatter(-1, order, (mean <= c.high).to(flat)).view_as(square)
    return r * keep


CLIPS: dict[str, Callable[[TokenStats, Tensor, Clip], Tensor]] = {
    "none": none,
    "minirl": minirl,
    "ppo": ppo,
    "gspo": ppo,
    "cispo": cispo,
    "tv": tv,
    "kl": kl,
    "second_moment": second_moment,
}


def clip(stats: TokenStats, r: Tensor, recipe: Recipe) -> Tensor:
    """The clipped ratio of a recipe, `[..., B, T]`."""
    return CLIPS[recipe.clip.kind](stats, r, recipe.clip)
