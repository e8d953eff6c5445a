"""What a removal says of a cause: the share of a loss that goes with it, and the rule by which that share is read.

Shapes: S seeds, K exact evaluations.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from torch import Tensor

from firstorder.sim.trials.compare import interquartile_mean
from firstorder.sim.trials.statistics import Array, Estimate, bootstrap, middle_mean

Verdict = Literal["cause", "in part", "not", "open"]
LEAST, MOST = 0.25, 0.5  # shares of the loss: below the first a suspect is no cause, from the second on it is one
WORTH = 0.1  # of reward: what must be lost before there is a loss to explain
MOVED = 0.01  # of reward between two evaluations: a smaller rise is none


def loss(sound: Tensor, run: Tensor) -> Estimate:
    """Interquartile mean over seeds of final J of a sound run minus that of another, both `[S]`."""
    return interquartile_mean(sound - run)


def share_removed(lost: Tensor, left: Tensor) -> Estimate:
    """1 - left / lost of interquartile means over seeds: the share of a loss `[S]` that is gone where `left` `[S]` is
    lost. A seed is the same start in both, and is resampled in both at once."""

    def gone(before: Array, after: Array) -> Array:
        return 1.0 - middle_mean(after) / middle_mean(before)

    with np.errstate(divide="ignore", invalid="ignore"):
        return bootstrap([lost.numpy(), left.numpy()], gone)


def verdict(lost: Estimate, share: Estimate) -> Verdict:
    """What a removal says of a suspect.

    `cause`: it takes away at least half of the loss, the whole interval above a quarter. `in part`: less than half, the
    interval above a quarter. `not`: the interval below a quarter. `open`: a quarter is inside the interval, or there is
    no loss to explain, that of the interval's low end being at most 0.1.
    """
    if not lost.low > WORTH:
        return "open"
    if share.low > LEAST:
        return "cause" if share.value >= MOST else "in part"
    return "not" if share.high < LEAST else "open"


def rises_that_fail(trained: Tensor, deployed: Tensor) -> Tensor:
    """Of the steps between evaluations at which J of π `[S, K]` rises, the share at which J of μ falls: of every seed
    that has a rise, `[s]`."""
    rises = trained.diff(dim=-1) > MOVED
    fails = rises & (deployed.diff(dim=-1) < 0)
    some = rises.any(-1)
    return fails[some].double().sum(-1) / rises[some].double().sum(-1)


def over(states: Iterable[tuple[str, Verdict]]) -> str:
    """The answer to a claim from its removals, each with where it was: holds, does not, or holds where."""
    seen: dict[Verdict, list[str]] = {}
    for where, state in states:
        seen.setdefault(state, []).append(where)
    settled = seen.keys() - {"open"}
    if not settled:
        return "open"
    if len(settled) == 1:
        (only,) = settled
        return {"cause": "holds", "in part": "holds in part", "not": "does not hold"}[only]
    words: tuple[tuple[Verdict, str], ...] = (("cause", "holds: "), ("in part", "in part: "), ("not", "does not: "))
    return "; ".join(word + ", ".join(seen[state]) for state, word in words if state in seen)
