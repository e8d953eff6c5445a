"""What the training loop asks of a backend, whether it simulates or runs on a cluster, and what passes between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from .batch import RolloutBatch
from .diagnostics import Moments
from .stats import TokenStats

Weigh = Callable[[TokenStats], Tensor]
"""From the statistics of a batch or a chunk to its token weights `[..., B, T]`."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A batch, or a mini-batch of it, as the update sees it.

    Args:
        batch: as sampled.
        logp_old: `[..., B, L]` nats under π_old with the recipe's replay.
        replay: `[..., B, L, layers, K]` experts that the update must use, -1 where live; None for all live.
        values: `[..., B, L]`, the critic's V(c_t) at the context of each response token, in units of reward; NaN for
            members whose recipe has no critic, None where no recipe has one.
        advantage: `[..., B]`, or `[..., B, L]` where a recipe has a critic; set by the loop.
        returns: `[..., B, L]`, what `values` is trained on; set by the loop where there are values.
    """

    batch: RolloutBatch
    logp_old: Tensor
    replay: Tensor | None
    values: Tensor | None = None
    advantage: Tensor | None = None
    returns: Tensor | None = None

    def stats(self, logp_theta: Tensor) -> TokenStats:
        """The statistics that weights are made from, once log π_θ exists."""
        assert self.advantage is not None
        return TokenStats(
            logp_theta=logp_theta,
            logp_old=self.logp_old,
            logp_mu=self.batch.logp_mu,
            mask=self.batch.mask,
            advantage=self.advantage,
        )


class Backend(Protocol):
    """An engine pair: one samples, the other trains. log π_θ exists only inside the forward of `update`."""

    def rollout(self, step: int) -> RolloutBatch:
        """Sample the global batch of a step with μ_old, the responses of a prompt side by side."""

    def score(self, batch: RolloutBatch) -> tuple[Scored, Moments]:
        """log π_old, the experts to replay and the critic's values, with the moments of route agreement."""

    def update(self, minibatch: Scored, weigh: Weigh) -> Moments:
        """One optimiser step along Σ w ∇ log π_θ with w = weigh(stats); one of the critic along -∇ `value_loss`."""

    def push(self) -> None:
        """Send the trainer's weights to the inference engine."""

    def evaluate(self, step: int) -> dict[str, Tensor]:
        """Quantities measured off the training path after `step` steps; empty when it is not their turn."""

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs to go on bit for bit."""

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""


def split(scored: Scored, parts: int) -> Iterator[Scored]:
    """The mini-batches, in order, each of whole groups."""
    size = scored.logp_old.shape[-2] // parts
    for start in range(0, size * parts, size):
        yield take(scored, slice(start, start + size))


def take(scored: Scored, rows: slice) -> Scored:
    """Some of the responses of a scored batch, whatever the axes behind them."""
    where = (slice(None),) * (scored.batch.rewards.ndim - 1) + (rows,)

    def cut(held: dict[str, Any]) -> dict[str, Tensor]:
        return {name: x[where] for name, x in held.items() if isinstance(x, Tensor)}

    return replace(scored, batch=replace(scored.batch, **cut(vars(scored.batch))), **cut(vars(scored)))
