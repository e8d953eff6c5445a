"""Intervals over policies: the policy is the unit, its perturbation draws are averaged first."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
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
    """Share of `[n]` yes or no outcomes, with its exact binomial (Clopper-Pearson) interval."""
    found = stats.binomtest(int(hits.sum()), hits.numel()).proportion_ci(confidence_level=LEVEL)
    return Estimate(value=float(hits.double().mean()), low=float(found.low), high=float(found.high))


def _bootstrap(data: list[Array], of_means: Any) -> Estimate:
    return bootstrap(data, lambda *parts, axis: of_means([p.mean(axis=axis) for p in parts]))


def bootstrap(data: list[Array], statistic: Callable[..., Any]) -> Estimate:
    """Percentile bootstrap of `statistic(*data, axis=...)`, the arrays resampled together."""

    def of(*parts: Array, axis: int = -1) -> Array:
        return np.asarray(statistic(*parts, axis=axis))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # its interval is NaN, which settles nothing
        found = stats.bootstrap(
            data,
            of,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            confidence_level=LEVEL,
            method="percentile",
            rng=np.random.default_rng(0),
        )
    interval = found.confidence_interval
    return Estimate(value=float(of(*data)), low=float(interval.low), high=float(interval.high))
