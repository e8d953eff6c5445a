"""The inputs of the golden vectors as tensors, read where another framework is installed and this package need not be.

Shapes: B responses, T token positions; float64, the mask bool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WORDS = {"inf": float("inf"), "-inf": float("-inf")}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One case, with names as in `core.method.stats.TokenStats`; `theta` and
    `entropy` are leaves that take a gradient."""

    theta: Tensor
    old: Tensor
    mu: Tensor
    ref: Tensor
    entropy: Tensor
    mask: Tensor
    advantage: Tensor

    @property
    def size(self) -> int:
        """Responses."""
        return self.mask.shape[0]

    @property
    def advantages(self) -> Tensor:
        """`[B, T]`, 0 off the mask."""
        each = self.advantage if self.advantage.ndim == 2 else self.advantage[:, None].expand(self.mask.shape)
        return torch.where(self.mask, each, 0.0)


def batches(vectors: Mapping[str, Any]) -> dict[str, Batch]:
    """Every case, by name."""
    return {name: _batch(case["inputs"]) for name, case in vectors["cases"].items()}


def _batch(inputs: Mapping[str, Any]) -> Batch:
    named = {name: torch.tensor(_numbers(values), dtype=torch.float64) for name, values in inputs.items()}
    return Batch(
        theta=named["logp_theta"].requires_grad_(),
        old=named["logp_old"],
        mu=named["logp_mu"],
        ref=named["logp_ref"],
        entropy=named["entropy"].requires_grad_(),
        mask=named["mask"].bool(),
        advantage=named["advantage"],
    )


def _numbers(values: Any) -> Any:
    if isinstance(values, list):
        return [_numbers(each) for each in values]
    return WORDS[values] if isinstance(values, str) else values


def gradient(loss: Callable[[Batch], Tensor], batch: Batch, by: str = "theta") -> list[list[float]]:
    """The gradient of a peer's loss by log π_θ, or by another leaf, `[B, T]`, 0 off the mask, where no program is asked
    for one."""
    (found,) = torch.autograd.grad(loss(batch), getattr(batch, by), allow_unused=True)
    rows: list[list[float]] = torch.where(
        batch.mask, torch.zeros_like(batch.theta) if found is None else found, 0.0
    ).tolist()
    return rows
