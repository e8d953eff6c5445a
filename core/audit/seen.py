"""What the tables of an audit read of a chunk, made once for all of them.

Shapes: B samples, L positions, M MoE layers, K experts a token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, reduce

import torch
from torch import Tensor

from firstorder.core.formats.chunk import Chunk
from firstorder.core.method.stats import TokenStats
from firstorder.core.routing import flips, jaccard
from firstorder.core.training.replay import run_rows

PIECE = 1 << 18  # rows whose experts are compared in pairs at a time: K² bytes each


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Both engines' routes in the rows that an engine runs: of all tokens but a sample's last.

    Args:
        mask: bool `[B, L]`, the sampled tokens.
        there: bool `[B, L, M]`, both engines have the row.
        flipped: bool `[B, L, M]`, there, and of other expert sets.
        overlap: float64 `[B, L, M]`, |A ∩ B| / |A ∪ B|, 0 where not there.
    """

    mask: Tensor
    there: Tensor
    flipped: Tensor
    overlap: Tensor

    @cached_property
    def rows_there(self) -> Tensor:
        """Share of layers in which both have the row of each token, float64 `[B, L]`."""
        return over_layers(self.there)

    @cached_property
    def rows_flipped(self) -> Tensor:
        """Share of layers that flipped in the row of each token, float64 `[B, L]`."""
        return over_layers(self.flipped)

    @cached_property
    def rows_overlap(self) -> Tensor:
        """Overlap in the row of each token, summed over layers and divided by their number, float64 `[B, L]`."""
        return over_layers(self.overlap)

    @cached_property
    def share_there(self) -> Tensor:
        """`rows_there` of the row that made each sampled token, 0 elsewhere."""
        return self.of_token(self.rows_there)

    @cached_property
    def share_flipped(self) -> Tensor:
        """`rows_flipped` of the row that made each sampled token, 0 elsewhere."""
        return self.of_token(self.rows_flipped)

    @cached_property
    def known(self) -> Tensor:
        """Sampled tokens whose row is there in some layer, bool `[B, L]`."""
        return self.share_there > 0

    @cached_property
    def hit(self) -> Tensor:
        """Sampled tokens with a flip in some layer, bool `[B, L]`."""
        return self.share_flipped > 0

    @cached_property
    def made(self) -> Tensor:
        """Rows that made a sampled token, bool `[B, L]`: row t - 1 made token t."""
        return torch.cat([self.mask[:, 1:], torch.zeros_like(self.mask[:, :1])], dim=-1)

    def of_token(self, rows: Tensor) -> Tensor:
        """Numbers of rows at the sampled tokens that they made, `[B, L]` to the same."""
        return torch.where(self.mask, torch.cat([torch.zeros_like(rows[:, :1]), rows[:, :-1]], dim=-1), 0.0)

    def per_response(self, x: Tensor) -> Tensor:
        """Sums over the rows that made sampled tokens, `[B, L, M]` to float64 `[B, M]`."""
        return over_rows(x, self.made)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A chunk with what is made of it.

    Args:
        chunk: as read.
    """

    chunk: Chunk

    @cached_property
    def usable(self) -> Tensor:
        """As of the chunk."""
        return self.chunk.usable

    @cached_property
    def paired(self) -> bool:
        """Whether both log-probs are there."""
        return self.chunk.logp_mu is not None and self.chunk.logp_old is not None

    @cached_property
    def stats(self) -> TokenStats:
        """As of the chunk, with rewards that are numbers; where `paired`."""
        stats = self.chunk.stats()
        return (
            stats if stats.rewards is None else replace(stats, rewards=torch.where(self.rewarded, stats.rewards, 0.0))
        )

    @cached_property
    def rewarded(self) -> Tensor:
        """Responses whose reward is a number, bool `[B]`."""
        rewards = self.chunk.rewards
        return torch.zeros(len(self.chunk.mask), dtype=torch.bool) if rewards is None else rewards.isfinite()

    @cached_property
    def d(self) -> Tensor:
        """log π_old - log μ of usable tokens, 0 elsewhere, float64 `[B, L]`; where `paired`."""
        return self.stats.logp_old - self.stats.logp_mu

    @cached_property
    def rank(self) -> Tensor:
        """Which of the response's sampled tokens each is, from 1, int64 `[B, L]`."""
        return self.chunk.mask.long().cumsum(-1)

    @cached_property
    def turn(self) -> Tensor:
        """Which stretch of sampled tokens each is in, from 1, int64 `[B, L]`."""
        mask = self.chunk.mask
        before = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=-1)
        return (mask & ~before).long().cumsum(-1)

    @cached_property
    def agreement(self) -> Agreement | None:
        """Both engines' routes; None where the dump has not both, or in different sizes."""
        a, b = self.chunk.routes, self.chunk.routes_old
        if a is None or b is None or a.shape != b.shape:
            return None
        return compared(a, b, run_rows(self.chunk.lengths, a.shape[1]), self.chunk.mask)


def compared(a: Tensor, b: Tensor, run: Tensor, mask: Tensor) -> Agreement:
    """Two routings `[B, L, M, K]` in the rows that are run, bool `[B, L]`.

    Most rows name the same experts in the same order. Only the others are compared as sets, which is slow.
    """
    there = present(a) & present(b) & run[..., None]
    moved = (there & ~same(a, b)).flatten().nonzero()[:, 0]
    flipped, overlap = torch.zeros_like(there), there.double()
    x, y = (ids.reshape(-1, ids.shape[-1]) for ids in (a, b))
    for start in range(0, len(moved), PIECE):
        some = moved[start : start + PIECE]
        other = flips(x[some], y[some])
        flipped.view(-1)[some] = other
        overlap.view(-1)[some[other]] = jaccard(x[some[other]], y[some[other]]).double()
    return Agreement(mask=mask, there=there, flipped=flipped, overlap=overlap)


def present(ids: Tensor) -> Tensor:
    """Rows without an id below 0, bool `[...]` for `[..., K]`."""
    wide = words(ids)
    bits, size = torch.iinfo(wide.dtype).bits, torch.iinfo(ids.dtype).bits
    signs = sum(1 << (place + size - 1) for place in range(0, bits, size)) - (1 << bits)  # as a negative number
    return reduce(torch.bitwise_or, wide.unbind(-1)) & signs == 0


def same(a: Tensor, b: Tensor) -> Tensor:
    """Rows that are the same id by id, bool `[...]` for `[..., K]`, shapes as they broadcast."""
    pairs = zip(words(a).unbind(-1), words(b).unbind(-1), strict=True)
    return reduce(torch.logical_and, (x == y for x, y in pairs))


def words(ids: Tensor) -> Tensor:
    """The same bits as fewer, wider integers, so that a row is compared at once where it can be."""
    ids = ids.contiguous()
    size = ids.shape[-1] * ids.element_size()
    wide = next(kind for kind in (torch.int64, torch.int32, ids.dtype) if size % kind.itemsize == 0)
    return ids.view(wide)


def over_layers(x: Tensor) -> Tensor:
    """Means over layers, `[B, L, M]` to float64 `[B, L]`; those of 0s and 1s are exact."""
    x = x.float() if x.dtype is torch.bool else x
    return (x @ x.new_ones(x.shape[-1])).double() / x.shape[-1]


def over_rows(x: Tensor, where: Tensor) -> Tensor:
    """Sums over the rows that count, bool `[B, L]`, `[B, L, M]` to float64 `[B, M]`; counts are exact."""
    x = x.float() if x.dtype is torch.bool else x
    return (where[:, None].to(x) @ x)[:, 0].double()
