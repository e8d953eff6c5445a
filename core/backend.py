"""What the training loop asks of a backend, whether it enumerates, simulates or runs on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from .batch import RolloutBatch
from .stats import TokenStats

Weigh = Callable[[TokenStats], Tensor]
"""From the statistics of a chunk or a batch to its token weights `[..., B, T]`; see `surrogate.token_weights`."""


class Backend(Protocol):
    """An engine pair: one samples, the other trains.

    log π_θ exists only inside the forward of an update, so the loop hands over a function, not weights.
    """

    def rollout(self, step: int) -> RolloutBatch:
        """Sample one global batch with μ_old."""

    def score(self, batch: RolloutBatch) -> tuple[Tensor, Tensor | None]:
        """log π_old `[B, L]` in nats under the recipe's replay, and the routes it recorded (R2) or None."""

    def update(self, minibatch: RolloutBatch, weigh: Weigh) -> dict[str, tuple[Tensor, Tensor]]:
        """One optimiser step along Σ w ∇log π_θ; returns moments to be reduced and logged."""

    def push(self) -> None:
        """Send the trainer's weights to the inference engine."""
