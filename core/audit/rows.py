"""Rows of routes as words of 64 bits, so that whole rows are compared at once, and a sample of them where pairs are.

Shapes: B responses, L positions, M MoE layers, K experts a token, W words of a row, T tokens of a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.core.formats.chunk import Chunk
from firstorder.core.training.replay import run_rows

SIDES = {"rollout": "routes", "trainer": "routes_old"}
WIDTHS = {4: torch.int64, 2: torch.int32, 1: torch.int16}
SIGNS = {torch.int64: -0x7FFF7FFF7FFF8000, torch.int32: -0x7FFF8000, torch.int16: -0x8000}  # the sign of every id


def words(ids: Tensor) -> Tensor:
    """int16 ids `[..., K]` as integers `[..., W]`, 4, 2 or 1 of them in each."""
    k = ids.shape[-1]
    width = 4 if k % 4 == 0 else 2 if k % 2 == 0 else 1
    return ids.to(torch.int16).contiguous().view(WIDTHS[width])


def same(a: Tensor, b: Tensor | int) -> Tensor:
    """Whether words `[..., W]` are those of another row, or all one number; bool `[...]`."""
    parts = [x == (b if isinstance(b, int) else b[..., i]) for i, x in enumerate(a.unbind(-1))]
    out = parts[0]
    for part in parts[1:]:
        out = out & part
    return out


def negative(w: Tensor) -> Tensor:
    """Whether any id of a row is below 0, bool `[...]` of words `[..., W]`."""
    out = w[..., 0]
    for x in w.unbind(-1)[1:]:
        out = out | x
    found: Tensor = (out & SIGNS[w.dtype]) != 0
    return found


def hashes(w: Tensor) -> Tensor:
    """A 64-bit hash of every row, in its order, int64 `[...]` of words `[..., W]`."""
    out = torch.zeros_like(w[..., 0], dtype=torch.int64)
    for x in w.unbind(-1):
        out = (out ^ x) * 0x2545F4914F6CDD1D
        out = out ^ (out >> 31)
    return out


def shared(a: Tensor, b: Tensor) -> Tensor:
    """|A ∩ B| of two expert sets `[..., K]`, int64 `[...]`; 0 where a row is missing."""
    there = (a[..., 0] >= 0) & (b[..., 0] >= 0)
    return (a[..., :, None] == b[..., None, :]).any(-1).sum(-1) * there


def spread_layers(layers: int, most: int) -> Tensor:
    """So many layers, from the first to the last, int64."""
    return torch.linspace(0, layers - 1, min(layers, most)).round().long()


def inner(chunk: Chunk, most: int) -> Tensor:
    """Places in `[B L]` of tokens that ran, as did both neighbours; every n-th where there are more than `most`."""
    run = run_rows(chunk.lengths, chunk.tokens.shape[-1])
    between = run & torch.roll(run, -1, dims=-1) & torch.roll(run, 1, dims=-1)
    between[:, 0] = False
    place = between.flatten().nonzero().flatten()
    return place[:: max(1, -(-len(place) // most))]


def listed(layers: Tensor, most: int = 8) -> str:
    """Layers for people, of bool `[M]`."""
    numbers = layers.nonzero().flatten().tolist()
    if len(numbers) == len(layers):
        return "all layers" if len(layers) > 1 else "the only layer"
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:most]))}{more}"
