"""The training loop, synchronous as in arXiv 2512.01374 sec. 2: sample, score once, N updates, sync.

    batch = B prompts x G responses from μ_old
    score with π_old once (R2 records its experts, R3 replays those of μ_old; a critic values every context)
    split into N mini-batches; one optimiser step each, with the weights of the recipe
    send the new weights to μ

The loop knows no engine. A backend may hold a whole ensemble: then every tensor has a leading axis M, the arms say
which recipe each member follows, and every quantity is logged per member.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from operator import attrgetter

from torch import Tensor

from firstorder.core.errors import ConfigError
from firstorder.core.method import terms
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.surrogate import RECEIPTS
from firstorder.core.method.value import explained_variance, value_moments
from firstorder.core.quantities import Moments, Quantity, add, means
from firstorder.core.runs.logs import StepLog, Timing

from . import diagnostics, inert, kept, replay, strata
from .arms import Arm, RecipeWeights, with_advantages
from .backend import Backend, Scored, split
from .batch import check_groups
from .diagnostics import finalise, moments

QUANTITIES: dict[str, Quantity] = {
    "reward": Quantity(
        formula="mean R of the responses sampled from mu", unit="reward", source="verl critic/rewards/mean; TRL reward"
    ),
    "reward_std": Quantity(
        formula="sqrt(mean (R - reward)^2) over the responses sampled from mu",
        unit="reward",
        source="firstorder; TRL reward_std divides by n - 1, or averages over groups",
    ),
    "update/second_order_remainder": Quantity(
        formula="second_order_remainder with pi_theta in place of pi_old, mean over updates",
        unit="reward",
        source="leading term of J(pi_theta) - J(mu) - E_mu[R sum delta]",
    ),
}


def undumped(step: int, scored: Scored) -> None:
    """Nobody keeps the batches."""


def train(
    arms: tuple[Arm, ...],
    backend: Backend,
    first: int = 0,
    on_step: Callable[[StepLog], None] = lambda log: None,
    on_batch: Callable[[int, Scored], None] = undumped,
) -> None:
    """Run the global steps `first`, ..., `schedule.steps` - 1.

    Args:
        arms: the recipes; they share one schedule.
        backend: the engines.
        first: where to go on.
        on_step: called after each step, once the weights are sent.
        on_batch: called with the batch of each step as it was scored, before the updates.

    Raises:
        ConfigError: the arms' schedules differ.
        DataError: a batch breaks its contract, or a loss is not finite.
        ReplayError: replay is on and did not take place.
    """
    schedule = arms[0].recipe.schedule
    if any(arm.recipe.schedule != schedule for arm in arms):
        raise ConfigError("the recipes of an ensemble must share one schedule; train the others in runs of their own")
    idle = inert.receipts(arms, backend.mismatch)
    for step in range(first, schedule.steps):
        started = time.perf_counter()
        batch = backend.rollout(step)
        check_groups(batch, schedule.prompts, schedule.group_size)
        scored, agreement = backend.score(batch)
        scored = with_advantages(scored, arms, schedule.group_size)
        on_batch(step, scored)
        stats = scored.stats(scored.logp_old)
        sums = add(add(agreement, moments(stats)), strata.moments(stats))
        sums = add(sums, value_moments(scored.values, scored.returns, batch.mask))
        replay.check_given(scored, arms)
        weight_fn = RecipeWeights(arms)
        for number, minibatch in enumerate(split(scored, schedule.minibatches)):
            updated = backend.update(minibatch, weight_fn)
            replay.check_replayed(minibatch, updated, arms, fresh=number == 0)
            sums = add(sums, updated)
        backend.sync_weights()
        metrics = _finalise(add(sums, weight_fn.moments)) | _rewards(batch.rewards) | backend.evaluate(step + 1)
        acted = weight_fn.receipts | replay.arrived(batch) | _named(sums, replay.PREFIX, kept.PREFIX)
        timing = Timing(seconds=time.perf_counter() - started, tokens=int(batch.mask.sum()))
        on_step(StepLog(step=step, metrics=metrics, receipts=means(acted) | idle, timing=timing))


def check_trainable(recipe: Recipe) -> None:
    """Refuse a weight that needs more than sampled rollouts carry.

    Raises:
        ConfigError: it reads whole distributions or router log-probs.
    """
    for key, part in recipe.parts.items():
        if part.needs is not None:
            raise ConfigError(
                f"{key} = {attrgetter(key)(recipe)} reads more than the log-probs of sampled tokens, which is all that "
                f"a rollout carries; see `firstorder measure` for it, or set another {key}"
            )


def logged_quantities(backend: Backend) -> dict[str, Quantity]:
    """What every name means that a step on this backend can log, in metrics or receipts."""
    return (
        diagnostics.QUANTITIES | strata.QUANTITIES | QUANTITIES | dict(backend.quantities) | RECEIPTS | inert.QUANTITIES
    )


def _rewards(rewards: Tensor) -> dict[str, Tensor]:
    """`reward` and `reward_std` of a batch, `[..., B]`."""
    return {"reward": rewards.mean(-1), "reward_std": rewards.std(-1, correction=0)}


def _named(sums: Moments, *prefixes: str) -> Moments:
    return {name: pair for name, pair in sums.items() if name.startswith(prefixes)}


def _finalise(sums: Moments) -> dict[str, Tensor]:
    """Named diagnostics, and every other moment under its own name."""
    averaged = means(sums)
    known = finalise(sums) | strata.finalise(sums) | explained_variance(averaged)
    return known | means(_named(sums, "route/", "update/", "critic/", terms.PREFIX))
