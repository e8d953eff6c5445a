"""Injecting: a fault that can be made in good samples, and the pieces that faults are made of.

Shapes: L positions of a sample, M MoE layers, K experts a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firstorder.core.formats.sample import Sample

Inject = Callable[[list[Sample], torch.Generator], list[Sample]]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault that can be made.

    Args:
        name: of the fault and its strength.
        inject: the samples with it; those given are left as they are.
        found_by: the detector's fault; None where a dump does not show it.
        extra: what would show it, where a dump does not.
        needs: columns of the samples that it changes.
    """

    name: str
    inject: Inject
    needs: tuple[str, ...]
    found_by: str | None
    extra: str | None = None


def each(change: Callable[[Sample, torch.Generator], Sample], share: float = 1.0) -> Inject:
    """A change of every sample, or of a share of them and of one at least."""

    def inject(samples: list[Sample], g: torch.Generator) -> list[Sample]:
        chosen = torch.rand(len(samples), generator=g) < share
        if not chosen.any():
            chosen[int(torch.randint(len(samples), (), generator=g))] = True
        return [change(s, g) if hit else s for s, hit in zip(samples, chosen.tolist(), strict=True)]

    return inject


def column(name: str, change: Callable[[Tensor, Sample, torch.Generator], Tensor], share: float = 1.0) -> Inject:
    """A change of one column, in a share of the samples."""

    def changed(sample: Sample, g: torch.Generator) -> Sample:
        return replace(sample, **{name: change(getattr(sample, name), sample, g)})  # type: ignore[arg-type]

    return each(changed, share)


def shift(x: Tensor, by: int, fill: float = 0.0) -> Tensor:
    """A column moved to later positions, `[L, ...]`."""
    out = torch.full_like(x, fill)
    if abs(by) < len(x):
        source, target = (slice(None, -by), slice(by, None)) if by > 0 else (slice(-by, None), slice(None, by))
        out[target] = x[source]
    return out


def masked(x: Tensor, sample: Sample) -> Tensor:
    """0 off the mask."""
    return torch.where(sample.mask, x, 0.0)


def some(mask: Tensor, share: float, g: torch.Generator) -> Tensor:
    """So many of the places, and one at least, bool like the mask."""
    hit = mask & (torch.rand(mask.shape, generator=g) < share)
    places = mask.nonzero().flatten()
    if not hit.any() and len(places):
        hit[places[int(torch.randint(len(places), (), generator=g))]] = True
    return hit
