"""RMS normalisation without a gain, its gradient written out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-6  # under the root, so that rows of zeros stay zero


def unit(x: Tensor) -> Tensor:
    """x / sqrt(mean(x²) + 1e-6) over the last axis, `[..., D]`."""
    y: Tensor = _Unit.apply(x)  # type: ignore[no-untyped-call]
    return y


def _factor(x: Tensor) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)


class _Unit(torch.autograd.Function):
    """dx = r (dy - y mean(y dy)), r = y / x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        factor = _factor(x)
        y = x * factor
        ctx.save_for_backward(x, y, factor)
        return y

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        (x, y, factor), (dy,) = ctx.saved_tensors, slopes
        if torch.is_grad_enabled():  # the gradient is differentiated itself, and the kept factor has no graph
            factor = _factor(x)
        dx: Tensor = factor * (dy - y * (y * dy).mean(-1, keepdim=True))
        return dx
