"""Means over a window of steps, for what is sampled and varies from batch to batch. Shapes: S steps, M members."""

from __future__ import annotations

import torch
from torch import Tensor

SHARE, MOST = 10, 50  # a window is a tenth of the run, and no more steps than that


def width(steps: int) -> int:
    """Steps of the window of a run of so many steps.

    Example:
        >>> width(12), width(200), width(10_000)
        (1, 20, 50)
    """
    return max(1, min(steps // SHARE, MOST))


def trailing(values: Tensor, window: int) -> Tensor:
    """The mean of each value and those before it in the window, fewer at the beginning.

    Args:
        values: `[S, M]`, NaN where nothing is known, which is left out.
        window: how many rows, at least 1.

    Returns:
        `[S, M]`, NaN where the whole window is.

    Example:
        >>> trailing(torch.tensor([[1.0], [3.0], [torch.nan], [7.0]]), 2)[:, 0]
        tensor([1., 2., 3., 7.])
    """
    ahead = torch.full_like(values[:1], torch.nan).expand(window - 1, -1)
    return torch.cat([ahead, values]).unfold(0, window, 1).nanmean(-1)
