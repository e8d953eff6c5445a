"""Outcomes of runs over seeds: interquartile means, paired differences and shares, with 95% bootstrap intervals.

Shapes: S seeds, K exact evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .budget import Verdict
from .collapse import collapsed
from .runs import Series
from .statistics import Estimate, bootstrap, middle_mean, share

LAST = 3  # evaluations whose mean is the final value


def final(series: Series) -> Tensor:
    """J of π at the end: the mean of the last exact evaluations, `[S]` in units of reward."""
    return series["exact/j_pi"][:, -LAST:].mean(-1)


def interquartile_mean(values: Tensor) -> Estimate:
    """Mean of the middle half over seeds of `[S]` values."""
    return bootstrap([values.numpy()], middle_mean)


def lead(better: Series, worse: Series) -> Estimate:
    """Interquartile mean over seeds of the difference of the final J; a seed is the same start in both."""
    return interquartile_mean(final(better) - final(worse))


def share_collapsed(series: Series) -> Estimate:
    """Share of seeds that collapsed, judged on J of π."""
    return share(collapsed(series["exact/j_pi"]))


def summary(series: Series) -> dict[str, Any]:
    """What a recipe came to in a condition."""
    return {
        "final_j_pi": interquartile_mean(final(series)).json(),
        "collapsed": share_collapsed(series).json(),
        "kl": float(series["kl"][:, -LAST:].mean()),
        "entropy": float(series["update/entropy"][:, -LAST:].mean()),
    }


def over_conditions(holds: Mapping[Any, bool | None]) -> tuple[Verdict, str]:
    """One verdict for a finding: reproduced if it holds in every condition, not reproduced if it is contradicted in
    every one, else inconclusive; with the count."""
    states = list(holds.values())
    settled = sum(state is True for state in states)
    headline = f"holds in {settled} of {len(states)} conditions, contradicted in {sum(s is False for s in states)}"
    if states and all(state is True for state in states):
        return "reproduced", headline
    if states and all(state is False for state in states):
        return "not reproduced", headline
    return "inconclusive", headline


def every(estimates: Sequence[Estimate]) -> bool | None:
    """True if all intervals are above 0, False if one is below it, None if neither is settled."""
    if all(estimate.low > 0 for estimate in estimates):
        return True
    return False if any(estimate.high < 0 for estimate in estimates) else None
