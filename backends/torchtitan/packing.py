"""Variable-length responses packed into rows, and back.

Shapes: B responses of L positions, padded at the end; R packed rows of P positions, documents one after the other; a
document starts where its positions restart at 0, and what is left of a row is documents of padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Responses in rows.

    Args:
        tokens: int64 `[R, P]`, 0 on padding.
        positions: int64 `[R, P]`, restarting at 0 with each document.
        place: int64 `[B, L]`, where a token lies in the flattened rows; -1 for padding of the batch.
    """

    tokens: Tensor
    positions: Tensor
    place: Tensor

    def rows(self, x: Tensor, fill: int) -> Tensor:
        """`[B, L, ...]` laid out as `[R, P, ...]`, with `fill` where nothing lies."""
        flat = x.new_full((self.tokens.numel(), *x.shape[2:]), fill)
        here = self.place >= 0
        flat[self.place[here]] = x[here]
        return flat.view(*self.tokens.shape, *x.shape[2:])

    def batch(self, x: Tensor, fill: float) -> Tensor:
        """`[R, P, ...]` back as `[B, L, ...]`, with `fill` on padding; gradients pass."""
        here = (self.place >= 0).view(*self.place.shape, *[1] * (x.ndim - 2))
        values = x.flatten(0, 1)[self.place.clamp(min=0)]
        return torch.where(here, values, torch.full_like(values, fill))


def pack(tokens: Tensor, lengths: Tensor, width: int) -> Packed:
    """Lay responses into rows of `width` in their order, starting a row when the next does not fit.

    Args:
        tokens: int64 `[B, L]`.
        lengths: int64 `[B]`, tokens that are not padding.
        width: positions of a row.

    Raises:
        DataError: a response is longer than a row.
    """
    starts, count = _starts(lengths, width)
    within = torch.arange(tokens.shape[1], device=tokens.device)
    place = torch.where(within < lengths[:, None], starts[:, None] + within, -1)
    here = place >= 0
    flat = tokens.new_zeros(count * width)
    flat[place[here]] = tokens[here]
    positions = torch.zeros_like(flat)
    positions[place[here]] = within.expand_as(place)[here]
    return Packed(tokens=flat.view(count, width), positions=positions.view(count, width), place=place)


def chunks(lengths: Tensor, width: int, rows: int) -> list[slice]:
    """Consecutive responses that fill at most `rows` rows of `width` each."""
    slices, first, used = [], 0, 1
    free = width
    for number, length in enumerate(_checked(lengths, width)):
        if length > free:
            used, free = used + 1, width
        if used > rows:
            slices.append(slice(first, number))
            first, used, free = number, 1, width
        free -= length
    return [*slices, slice(first, len(lengths))]


def _starts(lengths: Tensor, width: int) -> tuple[Tensor, int]:
    starts, row, free = [], 0, width
    for length in _checked(lengths, width):
        if length > free:
            row, free = row + 1, width
        starts.append(row * width + width - free)
        free -= length
    return torch.tensor(starts, dtype=torch.int64, device=lengths.device), row + 1


def _checked(lengths: Tensor, width: int) -> list[int]:
    counts: list[int] = lengths.tolist()
    if max(counts) > width:
        raise DataError(
            f"a response of {max(counts)} tokens does not fit into a row of torchtitan.pack_length = {width}; raise it"
        )
    return counts
