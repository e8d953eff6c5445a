"""Does the bias of a recipe point the same way from update to update? Errors that cancel are harmless; these add up.

Shapes: M members, P parameters. The bias of an update is b = c·u - g with u the exact expected update, g = ∇J_seq of
the natural target and c = u·g / u·u, so that b is orthogonal to u: what no step size removes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .fit import compare

MEMORY = 0.9  # an evaluation counts 0.9 as much as the next: a window of about ten


@dataclass(frozen=True, kw_only=True)
class Trail:
    """Where the bias has pointed so far: the `last` bias and the discounted `total`, `[M, P]`, and its `length`, the
    discounted sum of norms, `[M]`. All zero before the first evaluation."""

    last: Tensor
    total: Tensor
    length: Tensor


def begin(members: int, parameters: int) -> Trail:
    """A trail before the first evaluation."""
    nothing = torch.zeros(members, parameters, dtype=torch.float64)
    return Trail(last=nothing, total=nothing, length=nothing.sum(-1))


def bias(u: Tensor, g: Tensor) -> Tensor:
    """b = c·u - g with c = u·g / u·u, `[M, P]`; -g where u is zero."""
    return compare(u, g).scale[:, None] * u - g


def follow(trail: Trail, b: Tensor) -> tuple[Trail, dict[str, Tensor]]:
    """Add a bias to the trail.

    Args:
        trail: up to the evaluation before.
        b: `[M, P]`.

    Returns:
        The new trail, and `[M]` each: `exact/bias_cosine` of b with the one before (0 at the first), and
        `exact/bias_coherence` = ‖Σ m^k b_k‖ / Σ m^k ‖b_k‖ in [0, 1]: 1 where all point one way, about 1/√n where n
        are at random.
    """
    norm = b.norm(dim=-1)
    total, length = MEMORY * trail.total + b, MEMORY * trail.length + norm
    heading = {
        "exact/bias_cosine": cosine(trail.last, b),
        "exact/bias_coherence": _over(total.norm(dim=-1), length),
    }
    return Trail(last=b, total=total, length=length), heading


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of two vectors `[M, P]` each, 0 where one is zero; `[M]`."""
    return _over((a * b).sum(-1), a.norm(dim=-1) * b.norm(dim=-1))


def _over(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / torch.where(below > 0, below, 1.0), 0.0)
