"""What the training loop asks of a backend, whether it simulates or runs on a cluster, and what passes between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from firstorder.core.errors import DataError
from firstorder.core.method.stats import TokenStats, check_log_probs
from firstorder.core.quantities import Moments, Quantity
from firstorder.core.routing import Replay

from .agreement import THIN
from .batch import RolloutBatch

WeightFn = Callable[[TokenStats], Tensor]
"""From the statistics of a batch or of a chunk of whole responses to its token weights `[..., B, T]`."""

QUANTITIES: dict[str, Quantity] = {
    "route/flip_rate": Quantity(
        formula="share of (token, layer) at which pi_old, routing by itself, chooses another expert set than mu did",
        unit="share of (token, layer)",
        source="flip_rate of measure; arXiv 2510.11370",
    ),
    "route/tokens_flipped": Quantity(
        formula="share of response tokens with a flip in at least one layer",
        unit="share of tokens",
        source="tokens_flipped of measure; arXiv 2510.11370",
    ),
    "route/gate_margin": Quantity(
        formula="k-th minus (k+1)-th largest selection score of pi_old, mean over tokens and layers",
        unit="router score",
        source="gate_margin of measure",
    ),
    "route/thin_margin": Quantity(
        formula=f"share of (token, layer) with a margin, as of route/gate_margin, below {THIN:g}; divided by {THIN:g} "
        "about the density f of margins at 0: engines that differ by s in each score flip about f s / sqrt(pi)",
        unit="share of (token, layer)",
        source="firstorder; independent Gaussian differences of a small standard deviation s",
    ),
    "update/entropy": Quantity(
        formula="-sum_v pi_old(v) log pi_old(v) with the recipe's replay, mean over response tokens",
        unit="nats/token",
        source="arXiv 2512.01374; verl actor/entropy",
    ),
    "update/grad_norm": Quantity(
        formula="norm of the gradient of the loss before it is cut to optimizer.max_grad_norm, mean over updates",
        unit="loss per unit of parameter",
        source="verl actor/grad_norm; TRL grad_norm",
    ),
    "update/loss": Quantity(
        formula="-mean over responses of sum_t w_t log pi_theta(y_t), mean over updates",
        unit="reward x nats",
        source="verl actor/pg_loss; its gradient is minus the update, its value means little",
    ),
}
"""What `score` and `update` report under names that all backends share."""

SCALED: dict[str, Quantity] = {
    "update/step_scale": Quantity(
        formula="sqrt(ESS / B), ESS = (sum W)^2 / sum W^2, W = prod pi_theta / mu: what lr was multiplied by, mean "
        "over updates",
        unit="1",
        source="arXiv 2602.17616",
    ),
}
"""What `update` reports besides with `optimizer.step_scale = ess`."""


def layer_flips(layers: int) -> dict[str, Quantity]:
    """The flip rate of each MoE layer."""
    return {
        f"route/flip_rate_layer_{i}": Quantity(
            formula=f"share of response tokens at which the expert sets of pi_old and mu differ in MoE layer {i}",
            unit="share of tokens",
            source="flip_rate_per_layer of measure",
        )
        for i in range(layers)
    }


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A batch, or a mini-batch of it, as the update sees it.

    Args:
        batch: as sampled.
        logp_old: `[..., B, L]` nats under π_old with the recipe's replay.
        replay: experts `[..., B, L, layers, K]` that the update must use, -1 where live, and by what rule; None for all
            live.
        logp_ref: `[..., B, L]` nats under the reference policy with the same replay; None where no recipe has
            `terms.reference_kl`.
        values: `[..., B, L]`, the critic's V(c_t) at the context of each response token, in units of reward; NaN for
            members whose recipe has no critic, None where no recipe has one.
        advantage: `[..., B]`, or `[..., B, L]` where a recipe has a critic; set by the loop.
        returns: `[..., B, L]`, what `values` is trained on; set by the loop where there are values.
        differs: int64 `[..., B]`, rows at which π_old, routing live, chooses other experts than μ did.
        routes: `[..., B, L, layers, K]` of π_old, routing live; for dumps.
        entropy: `[..., B, L]` nats, of the distribution that π_old gives each token; for dumps.

    Raises:
        DataError: `logp_old` is not of the batch's shape, or holds what is no log-probability.
    """

    batch: RolloutBatch
    logp_old: Tensor
    replay: Replay | None
    logp_ref: Tensor | None = None
    values: Tensor | None = None
    advantage: Tensor | None = None
    returns: Tensor | None = None
    differs: Tensor | None = None
    routes: Tensor | None = None
    entropy: Tensor | None = None

    def __post_init__(self) -> None:
        if self.logp_old.shape != self.batch.mask.shape:
            raise DataError(
                f"`logp_old` must be {list(self.batch.mask.shape)}, as the batch is, got {list(self.logp_old.shape)}"
            )
        check_log_probs("logp_old", self.logp_old, self.batch.mask)

    def stats(self, logp_theta: Tensor, entropy: Tensor | None = None) -> TokenStats:
        """The statistics that weights are made from, once log π_θ exists; `entropy` of π_θ where `[terms]` reads it."""
        assert self.advantage is not None
        return TokenStats(
            logp_theta=logp_theta,
            logp_old=self.logp_old,
            logp_mu=self.batch.logp_mu,
            mask=self.batch.mask,
            advantage=self.advantage,
            logp_ref=self.logp_ref,
            entropy=entropy,
            rewards=self.batch.rewards,
        )


class Backend(Protocol):
    """An engine pair: one samples, the other trains. log π_θ exists only inside the forward of `update`."""

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """What every name means that `score`, `update` and `evaluate` report."""

    @property
    def experts(self) -> int:
        """Experts of an MoE layer."""

    @property
    def mismatch(self) -> bool:
        """Whether the two engines compute differently, by what is known of them before they run."""

    def rollout(self, step: int) -> RolloutBatch:
        """Sample the global batch of a step with μ_old, the responses of a prompt side by side."""

    def score(self, batch: RolloutBatch) -> tuple[Scored, Moments]:
        """log π_old, the experts to replay and the critic's values, with the moments of route agreement."""

    def update(self, minibatch: Scored, weight_fn: WeightFn) -> Moments:
        """One optimiser step along Σ w ∇ log π_θ with w = weight_fn(stats); one of the critic along -∇ `value_loss`.

        Among what it reports are the rows that replay did, by `core.training.replay.replayed`.
        """

    def sync_weights(self) -> None:
        """Send the trainer's weights to the inference engine."""

    def evaluate(self, step: int) -> dict[str, Tensor]:
        """Quantities measured off the training path after `step` steps; empty when it is not their turn."""

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs to go on bit for bit."""

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""


def split(scored: Scored, parts: int) -> Iterator[Scored]:
    """The mini-batches, in order, each of whole groups.

    Raises:
        DataError: the responses do not divide.
    """
    size, rest = divmod(scored.logp_old.shape[-2], parts)
    if rest or not size:
        raise DataError(f"a batch of {scored.logp_old.shape[-2]} responses does not divide into {parts} mini-batches")
    if parts == 1:
        yield scored  # as it was checked
        return
    for start in range(0, size * parts, size):
        yield take(scored, slice(start, start + size))


def take(scored: Scored, rows: slice) -> Scored:
    """Some of the responses of a scored batch, whatever the axes behind them."""
    where = (slice(None),) * (scored.batch.rewards.ndim - 1) + (rows,)

    def cut(fields: dict[str, Any]) -> dict[str, Tensor]:
        return {name: x[where] for name, x in fields.items() if isinstance(x, Tensor)}

    replay = None if scored.replay is None else scored.replay.each(lambda x: x[where])
    batch = replace(scored.batch, **cut(vars(scored.batch)))
    return replace(scored, batch=batch, replay=replay, **cut(vars(scored)))
