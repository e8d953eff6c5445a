"""The router shift: a ratio counts for less where the target's router has left the old policy's."""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.core.errors import DataError

from .stats import TokenStats


def rescale(stats: TokenStats, r: Tensor, floor: float | None) -> Tensor:
    """r_t · max(floor, exp(-Δ_t)), Δ_t = mean |log router_θ - log router_old| over layers and π_old's experts.

    Args:
        stats: with `router_shift` where a floor is given.
        r: `[..., B, T]`, ratios.
        floor: smallest factor, in (0, 1); None leaves the ratios as they are.

    Returns:
        `[..., B, T]`, without gradient: it comes before the clip and before any mean.

    Raises:
        DataError: a floor, and no shift to hold above it.

    Reference:
        RSPO, arXiv 2510.23027v2.
    """
    if floor is None:
        return r
    if stats.router_shift is None:
        raise DataError("`ratio.router_floor` needs `router_shift`, the router log-prob shift; got None")
    return r * torch.where(stats.mask, (-stats.router_shift).exp().clamp(min=floor), 1.0)
