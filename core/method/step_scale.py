"""How far an update goes: the learning rate times what the effective sample size leaves of a batch (arXiv 2602.17616).

    lr' = lr · sqrt(ESS / B),      ESS = (Σ_i W_i)² / Σ_i W_i²,      W_i = Π_t π_θ(y_t|c_t) / μ(y_t|c_t)

The square root is that paper's rule for AdamW, whose step does not depend on the size of the gradient: that is why the
step is scaled and not the gradient. ESS / B is against weights that are all alike, not against a first batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .stats import TokenStats


def log_weights(stats: TokenStats) -> Tensor:
    """log W `[..., B]` of every response, nats, without gradient; -inf where π_θ gives a token no probability."""
    apart = stats.logp_theta.detach().double() - stats.logp_mu.double()
    return torch.where(stats.mask, apart, 0.0).sum(-1)


def effective_share(log_w: Tensor) -> Tensor:
    """ESS / B of log-weights `[..., B]`, `[...]` in [0, 1]; 0 where every weight is 0.

    Example:
        >>> effective_share(torch.tensor([0.0, 0.0, -torch.inf, -torch.inf])).item()
        0.5
    """
    share = (2 * log_w.logsumexp(-1) - (2 * log_w).logsumexp(-1) - math.log(log_w.shape[-1])).exp()
    return torch.where(log_w.amax(-1) > -torch.inf, share, 0.0).clamp(max=1.0)


def step_scale(share: Tensor) -> Tensor:
    """What lr is multiplied by at an ESS / B of `share`."""
    return share.sqrt()
