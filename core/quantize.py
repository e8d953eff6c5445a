"""Quantise-dequantise: the values that a low-precision engine would have computed with, held in float32 or float64.

`fp8_e4m3` follows OCP FP8 (no infinities, largest finite 448) with round to nearest even, scales in float32 as engines
keep them. Weights are quantised once per load, activations per token as they come.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FP8_MAX = 448.0
INT8_MAX = 127.0


def round_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x rounded to a floating-point format and back, straight through for gradients."""
    return _straight_through(x, x.to(dtype).to(x.dtype))


def fp8(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Scaled e4m3 over the given dimensions: s · e4m3(x / s), s = amax / 448."""
    return _scaled(x, dims, FP8_MAX, lambda v: v.to(torch.float32).to(torch.float8_e4m3fn).to(v.dtype))


def int8(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Symmetric int8 over the given dimensions: s · round(x / s), s = amax / 127."""
    return _scaled(x, dims, INT8_MAX, torch.round)


def fp8_blocks(x: Tensor, block: int) -> Tensor:
    """Scaled e4m3 of a matrix `[..., D, F]` in block × block tiles (ragged edges are tiles of their own)."""
    rows = [_tiles(part, block) for part in torch.split(x, block, dim=-2)]
    return torch.cat(rows, dim=-2)


def fp8_groups(x: Tensor, block: int) -> Tensor:
    """Scaled e4m3 of activations `[..., D]` in groups of `block` along the last axis, per token."""
    return torch.cat([fp8(part, (-1,)) for part in torch.split(x, block, dim=-1)], dim=-1)


def _tiles(row: Tensor, block: int) -> Tensor:
    return torch.cat([fp8(tile, (-2, -1)) for tile in torch.split(row, block, dim=-1)], dim=-1)


def _scaled(x: Tensor, dims: tuple[int, ...], top: float, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    scale = (x.detach().abs().amax(dims, keepdim=True) / top).to(torch.float32).to(x.dtype)
    scale = torch.where(scale > 0, scale, 1.0)
    return _straight_through(x, rounding((x.detach() / scale).clamp(-top, top)) * scale)


def _straight_through(x: Tensor, value: Tensor) -> Tensor:
    """`value` forward, the gradient of x backward."""
    return x + (value - x).detach() if x.requires_grad else value
