"""Clips: how far the target may move before a token stops counting.

A clip takes the ratio that multiplies the advantage and returns it changed: masked to zero (MiniRL, PPO, GSPO,
DPPO, M2PO, CTPO), bounded (CISPO), both (GMPO), or damped (SAPO). The sign-aware masks share one rule: a token is
dropped when its ratio has already moved beyond the bound in the direction that its advantage pushes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .ratio import ratio
from .recipe import Recipe
from .sections import Clip
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


def dual(stats: TokenStats, r: Tensor, c: Clip) -> Tensor:
    """As `ppo`, and zero where A < 0 and r > cap: the gradient of max(min(rA, clip(r) A), cap A) (dual-clip PPO).

    Reference:
        arXiv 1912.09729; TRL's `delta` of arXiv 2505.07291 is the same cap where it is above 1 + high.
    """
    return ppo(stats, r, c) * sign_aware(-stats.token_advantage, r > c.cap, torch.zeros_like(r, dtype=torch.bool))


def sapo(stats: TokenStats, r: Tensor, c: Clip) -> Tensor:
    """r · 4 σ(x) σ(-x), x = τ (r - 1): the gradient of (4/τ) σ(τ (r - 1)), a soft gate (SAPO).

    Reference:
        arXiv 2511.20347.
    """
    above, below = (r.new_full((), tau) for tau in c.temperature)
    x = torch.where(stats.token_advantage > 0, above, below) * (r - 1)
    return r * 4 * x.sigmoid() * (-x).sigmoid()


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


def m2po(stats: TokenStats, r: Tensor, c: Clip) -> Tensor:
    """PPO's mask at one bound for the whole batch, r in [min(1 - low, exp -τ), max(1 + high, exp τ)] (M2PO).

    τ caps |log r| over harmful tokens (A > 0 and r > 1, or A < 0 and r < 1) so that their mean square is the budget:

        Σ_harmful m min(log² r, τ²) = budget · Σ_harmful m

    and is infinite where that mean needs no cap. The authors' code rounds τ down to the largest |log r| below it.

    Reference:
        arXiv 2510.01161; github.com/Infini-AI-Lab/M2PO.
    """
    a, log = stats.token_advantage, torch.where(stats.mask, r, 1.0).log()
    harmful = stats.mask & (((a > 0) & (r > 1)) | ((a < 0) & (r < 1)))
    share = (stats.weights[..., None] * harmful).expand_as(log)
    tau = capped(log.square().flatten(-2), share.flatten(-2), c.budget).sqrt()[..., None, None]
    low, high = (-tau).exp().clamp(max=1 - c.low), tau.exp().clamp(min=1 + c.high)
    return r * sign_aware(a, r > high, r < low)


def capped(v: Tensor, m: Tensor, budget: float) -> Tensor:
    """The cap x with Σ m min(v, x) = budget Σ m, `[...]`; infinite where Σ m v is no more than that.

    Args:
        v: `[..., n]`, not negative.
        m: `[..., n]`, the weight of each.
        budget: their capped mean.

    Example:
        >>> capped(torch.tensor([1.0, 2.0, 9.0]), torch.ones(3), 2.0)
        tensor(3.)
    """
    v, order = v.sort(-1)
    m = m.expand_as(v).gather(-1, order)
    total, target = m.sum(-1, keepdim=True), budget * m.sum(-1, keepdim=True)
    below, left = torch.where(m > 0, m * v, 0.0).cumsum(-1), total - m.cumsum(-1)
    at = below + torch.where(left > 0, v * left, 0.0)  # Σ m min(v, v_k), which grows with k
    first = torch.searchsorted(at.contiguous(), target).clamp(max=v.shape[-1] - 1)
    before_first = (first - 1).clamp(min=0)
    before = torch.where(first > 0, below.gather(-1, before_first), 0.0)
    cap = (target - before) / torch.where(first > 0, left.gather(-1, before_first), total)
    return torch.where(at[..., -1:] <= target, torch.inf, cap)[..., 0]


def ctpo(stats: TokenStats, r: Tensor, c: Clip) -> Tensor:
    """PPO's mask on the prefix ratio, log r in [-low √t, high √t] at position t; A < 0 minds both bounds (CTPO).

    The upper bound for A < 0 is the dual clip of the authors' code, at the same distance.

    Reference:
        arXiv 2605.07331; github.com/horizon-llm/CTPO.
    """
    root = stats.mask.cumsum(-1).to(r).sqrt()
    above, below = r > (c.high * root).exp(), r < (-c.low * root).exp()
    return r * sign_aware(stats.token_advantage, above, below | above)


def gmpo(stats: TokenStats, r: Tensor, c: Clip) -> Tensor:
    """(∏_s r̂_s)^{1/|y|} of the clipped token ratios, and PPO's mask on each token's own (GMPO, arXiv 2507.20673).

    r̂ holds log r at most `high` where A > 0 and at least -`low` where A < 0; a token that is held has no gradient.
    """
    a, log = stats.token_advantage, torch.where(stats.mask, r, 1.0).log()
    clamped = torch.where(a > 0, log.clamp(max=c.high), torch.where(a < 0, log.clamp(min=-c.low), log))
    mean = (clamped.sum(-1) / stats.lengths).exp()[..., None]
    return mean * sign_aware(a, log > c.high, log < -c.low)


FUNCTIONS: dict[str, Callable[[TokenStats, Tensor, Clip], Tensor]] = {
    "none": none,
    "minirl": minirl,
    "ppo": ppo,
    "dual": dual,
    "gspo": ppo,
    "cispo": cispo,
    "sapo": sapo,
    "tv": tv,
    "kl": kl,
    "m2po": m2po,
    "ctpo": ctpo,
    "gmpo": gmpo,
}


def clip(stats: TokenStats, r: Tensor, recipe: Recipe) -> Tensor:
    """The clipped ratio of a recipe, `[..., B, T]`."""
    return FUNCTIONS[recipe.clip.kind](stats, r, recipe.clip)
