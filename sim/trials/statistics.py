"""Intervals over policies: the policy is the unit, its perturbation draws are averaged first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic with its 95% bootstrap interval over policies."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """`value [low, high]`."""
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def json(self) -> dict[str, Any]:
        """As plain numbers."""
        return asdict(self)

    def inside(self, low: float, high: float) -> bool:
        """Whether the whole interval lies in [low, high]."""
        return low <= self.low and self.high <= high

    def outside(self, low: float, high: float) -> bool:
        """Whether the whole interval lies outside [low, high]."""
        return self.high < low or self.low > high


def mean(values: Tensor) -> Estimate:
    """Mean over policies of `[policies]` values."""
    return _bootstrap([values.numpy()], lambda parts: parts[0])


def ratio_of_means(above: Tensor, below: Tensor) -> Estimate:
    """mean(above) / mean(below) over policies."""
    return _bootstrap([above.numpy(), below.numpy()], lambda parts: parts[0] / parts[1])


def slope(scales: Sequence[float], sums: Sequence[Tensor], counts: Sequence[Tensor]) -> Estimate:
    """Least-squares slope of log(mean value) against log(scale).

    Args:
        scales: perturbations, at least two.
        sums: for each scale, the values added up per policy, `[policies]`.
        counts: for each scale, how many members each policy's sum holds, `[policies]`.
    """
    x = np.log(np.asarray(scales))
    weight = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    n = len(scales)

    def fit(parts: list[Array]) -> Array:
        # a scale without members, or without error, has no logarithm: NaN, which no interval contains
        means = [
            np.where(parts[n + i] > 0, parts[i], np.nan) / np.where(parts[n + i] > 0, parts[n + i], 1) for i in range(n)
        ]
        log = [np.log(np.where(m > 0, m, np.nan)) for m in means]
        return np.asarray(sum(w * y for w, y in zip(weight, log, strict=True)))

    return _bootstrap([t.numpy() for t in (*sums, *counts)], fit)


def share(hits: Tensor) -> Estimate:
    """Share of `[n]` yes or no outcomes, with its exact binomial interval (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv  # here, since it takes a third of a second to import

    yes, n, tail = int(hits.sum()), hits.numel(), (1 - LEVEL) / 2
    low = betaincinv(yes, n - yes + 1, tail) if yes else 0.0
    high = betaincinv(yes + 1, n - yes, 1 - tail) if yes < n else 1.0
    return Estimate(value=float(hits.double().mean()), low=float(low), high=float(high))


def seeds_to_settle(estimate: Estimate, seeds: int, limit: float = 0.0) -> int | None:
    """How many seeds it takes until an interval leaves a limit out, if value and spread stay what they are.

    A half-width h falls with 1/√n, and has to come below the distance d of the value from the limit:

        n = ⌈seeds · (h/d)²⌉,  with h that of the side that faces the limit

    Args:
        estimate: from `seeds` seeds.
        seeds: the units of its interval.
        limit: what the interval is to leave out, in the units of the value.

    Returns:
        At least 2, as many as an interval needs; None where the value is the limit, or the interval is not known.

    Example:
        >>> seeds_to_settle(Estimate(value=0.1, low=-0.1, high=0.3), seeds=8)
        32
    """
    distance = abs(estimate.value - limit)
    half = estimate.value - estimate.low if estimate.value > limit else estimate.high - estimate.value
    if not (distance > 0 and math.isfinite(half)):
        return None
    return max(2, math.ceil(seeds * (half / distance) ** 2 - 1e-9))


def _bootstrap(data: list[Array], of_means: Any) -> Estimate:
    return bootstrap(data, lambda *parts: of_means([part.mean(-1) for part in parts]))


def bootstrap(data: Sequence[Array], statistic: Callable[..., Any]) -> Estimate:
    """`statistic(*data)` of arrays `[n]` with its percentile interval."""
    low, high = interval(data, statistic)
    return Estimate(value=float(statistic(*data)), low=float(low), high=float(high))


def interval(data: Sequence[Array], statistic: Callable[..., Any], batch: int = RESAMPLES) -> tuple[Array, Array]:
    """95% percentile bootstrap interval of `statistic(*data)` (Efron 1979), NaN if a resample has no value.

    Args:
        data: arrays `[..., n]`, resampled together along the last axis with a fixed seed.
        statistic: of as many arrays `[..., n]`, over their last axis.
        batch: resamples held at once.

    Returns:
        Its ends, each `[...]`; of a single value NaN, since nothing says how far it varies.
    """
    rng, n = np.random.default_rng(0), data[0].shape[-1]
    if n < 2:
        nothing = np.full(data[0].shape[:-1], np.nan)
        return nothing, nothing
    values = []
    for start in range(0, RESAMPLES, batch):
        picks = rng.integers(0, n, (min(batch, RESAMPLES - start), n))
        values.append(np.asarray(statistic(*(part[..., picks] for part in data))))
    ordered = np.sort(np.concatenate(values, axis=-1), axis=-1)
    tail = (1 - LEVEL) / 2
    return _quantile(ordered, tail), _quantile(ordered, 1 - tail)


def _quantile(ordered: Array, p: float) -> Array:
    """The p-quantile of sorted values `[..., n]`, linear between the two nearest; NaN if one of them is."""
    n = ordered.shape[-1]
    place, share = divmod(p * n + (1 - p), 1)
    below, above = ordered[..., int(place) - 1], ordered[..., min(int(place), n - 1)]
    return np.where(np.isnan(ordered[..., -1]), np.nan, (1 - share) * below + share * above)


def middle_mean(values: Array) -> Array:
    """Interquartile mean over the last axis: without a quarter, rounded down, at either end; NaN if a value is.

    Example:
        >>> float(middle_mean(np.array([0.0, 1.0, 2.0, 90.0])))
        1.5
    """
    n = values.shape[-1]
    cut = n // 4
    middle = np.partition(values, (cut, n - cut - 1), -1)[..., cut : n - cut]
    return np.where(np.isnan(values).any(-1), np.nan, middle.mean(-1))
