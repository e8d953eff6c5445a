"""The experts that tokens chose, and no others: tokens sorted by expert into blocks, one product for all blocks.

Shapes: M members, N prefixes, K experts a token, E experts, D width, F expert width, C blocks a member, B rows a block.

    out_n = Σ_k g_nk · silu(x_n W1_e) W2_e,  e = ids_nk

A block holds rows of one expert; the last block of an expert is filled up with rows of gate 0. There are as many
blocks as any choice could need, so shapes depend on no number: a member runs through the same products alone and in
any ensemble. The gradient is written out; where it is itself differentiated, the formula above is, by autograd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nn

# rows of a block: a longer one wastes more rows on fillings, a shorter one gathers more weights
SHORTEST, LONGEST = 16, 64


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Rows sorted by expert.

    Args:
        size: B.
        rows: int64 `[M·C·B]`, the row of x, of M·N, that stands in each place; fillings name the member's first.
        expert: int64 `[M·C]`, that of each block, of M·E.
        places: int64 `[K, M·N]`, where each row stands for its k-th expert.
    """

    size: int
    rows: Tensor
    expert: Tensor
    places: Tensor


def fills(ids: Tensor, experts: int) -> bool:
    """Whether tokens that spread evenly fill a block of each expert; with fewer all experts on all tokens take less."""
    return ids.shape[1] * ids.shape[2] >= SHORTEST * experts


def block_size(prefixes: int, top_k: int, experts: int) -> int:
    """Rows of a block: about a quarter of what an expert gets where tokens spread evenly, within limits."""
    quarter = prefixes * top_k // (4 * experts)
    return min(LONGEST, max(SHORTEST, quarter // SHORTEST * SHORTEST))


def blocks(ids: Tensor, experts: int) -> Blocks:
    """Sort tokens by expert, those of each member by themselves; `ids` int64 `[M, N, K]`, distinct in a row."""
    m, n, k = ids.shape
    size = block_size(n, k, experts)
    count = (n * k + experts * (size - 1)) // size  # no choice needs more
    rank = torch.zeros(m, n, experts, dtype=torch.int64, device=ids.device).scatter_(-1, ids, 1).cumsum_(1)
    needed = (rank[:, -1] + (size - 1)) // size
    ends = needed.cumsum(-1)
    member = torch.arange(m, device=ids.device)[:, None]
    index = torch.arange(count, device=ids.device).repeat(m, 1)
    expert = torch.searchsorted(ends, index, right=True).clamp_(max=experts - 1) + member * experts
    before = (ends - needed) * size + (member * (count * size) - 1)  # ranks count from 1
    places = rank.add_(before[:, None]).gather(-1, ids).flatten(0, 1)
    rows = (member * n).repeat(1, count * size).flatten()
    rows.scatter_(0, places.flatten(), torch.arange(m * n, device=ids.device).repeat_interleave(k))
    return Blocks(size=size, rows=rows, expert=expert.flatten(), places=places.t().contiguous())


def chosen(x: Tensor, gates: Tensor, ids: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Σ_k g_k · silu(x W1_e) W2_e over the experts that each token chose, `[M, N, D]`.

    Args:
        x: `[M, N, D]`.
        gates: `[M, N, K]`.
        ids: int64 `[M, N, K]`, distinct in a row.
        up, down: `[M, E, D, F]` and `[M, E, F, D]`.
    """
    out: Tensor = _Chosen.apply(x, gates, up, down, ids, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return out


def all_experts(x: Tensor, gates: Tensor, up: Tensor, down: Tensor, ids: Tensor) -> Tensor:
    """The same with every expert run on every token, the unchosen with gate 0."""
    dense = torch.zeros(*ids.shape[:-1], up.shape[1], dtype=gates.dtype, device=ids.device).scatter(-1, ids, gates)
    hidden = nn.silu(torch.einsum("mnd,medf->mnef", x, up))
    return torch.einsum("mnef,mefd,mne->mnd", hidden, down, dense)


class _Chosen(torch.autograd.Function):
    """What the backward reads is kept; the rest is written where something no longer needed stood."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gates: Tensor, up: Tensor, down: Tensor, ids: Tensor, keep: bool) -> Tensor:
        to = blocks(ids, up.shape[1])
        read = _rows(x, to)
        inner = torch.bmm(read, _weights(up, to))
        hidden = nn.silu(inner, inplace=not keep)
        spare = torch.empty_like(read) if keep else read
        out = _collected(torch.bmm(hidden, _weights(down, to), out=spare), to, gates)
        if keep:
            ctx.size = to.size
            ctx.save_for_backward(x, gates, up, down, ids, read, inner, hidden, to.rows, to.expert, to.places)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, gates, up, down, ids, read, inner, hidden, rows, expert, places = ctx.saved_tensors
        (slope,) = slopes
        if torch.is_grad_enabled():
            return _twice((x, gates, up, down), ids, slope, ctx.needs_input_grad)
        to = Blocks(size=ctx.size, rows=rows, expert=expert, places=places)
        gate = gates.new_zeros(rows.shape).scatter_(0, places.flatten(), gates.flatten(0, 1).t().flatten())
        gate = gate.view(-1, to.size, 1)
        d_out = _rows(slope, to)
        d_inner = torch.bmm(d_out, _weights(down, to).transpose(1, 2))
        spare = d_inner * hidden
        d_gates = spare.sum(-1).flatten()[places].t().reshape(gates.shape)
        d_down = _per_expert(hidden.transpose(1, 2), d_out.mul_(gate), to, down)
        d_inner = torch.ops.aten.silu_backward.grad_input(d_inner.mul_(gate), inner, grad_input=spare)
        d_up = _per_expert(read.transpose(1, 2), d_inner, to, up)
        d_x = _collected(torch.bmm(d_inner, _weights(up, to).transpose(1, 2), out=d_out), to)
        return d_x.view(x.shape), d_gates, d_up, d_down, None, None


def _twice(
    given: tuple[Tensor, Tensor, Tensor, Tensor], ids: Tensor, slope: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The gradient by autograd, so that it has a graph itself."""
    wanted = [x for x, need in zip(given, needed, strict=False) if need]
    found = iter(torch.autograd.grad(all_experts(*given, ids=ids), wanted, slope, create_graph=True))
    return tuple(next(found) if need else None for need in needed)


def _rows(x: Tensor, to: Blocks) -> Tensor:
    """The rows of x that stand in each block, `[M·C, B, D]`."""
    return x.flatten(0, 1).index_select(0, to.rows).view(-1, to.size, x.shape[-1])


def _weights(w: Tensor, to: Blocks) -> Tensor:
    """The weights of each block's expert, `[M·C, ., .]` of `[M, E, ., .]`."""
    return w.flatten(0, 1).index_select(0, to.expert)


def _collected(y: Tensor, to: Blocks, gates: Tensor | None = None) -> Tensor:
    """Σ_k of what stands in the places of each row, each times its gate, `[M·N, D]` of `[M·C, B, D]`."""
    y = y.flatten(0, 1)
    parts = [y.index_select(0, place) for place in to.places]
    if gates is not None:
        for part, gate in zip(parts, gates.flatten(0, 1).unbind(-1), strict=True):
            part.mul_(gate[:, None])
    total = parts[0]
    for part in parts[1:]:
        total.add_(part)
    return total


def _per_expert(a: Tensor, b: Tensor, to: Blocks, like: Tensor) -> Tensor:
    """Σ a b over the blocks of each expert, shaped as its weights."""
    total = torch.zeros_like(like.flatten(0, 1), memory_format=torch.contiguous_format)
    return total.index_add_(0, to.expert, torch.bmm(a, b)).view(like.shape)
