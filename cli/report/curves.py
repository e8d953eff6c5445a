"""Curves of members: interquartile mean with a bootstrap interval. Shapes: S logged steps, M members."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .catalogue import Panel
from .runs import Array, Run

RESAMPLES = 2000
LEVEL = 0.95
TRIMMED = 0.25  # of the members, at each end
HELD = 4_000_000  # resampled values held at once


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A quantity of a run over its steps.

    Args:
        run: the run.
        panel: what the quantity is.
        steps: as logged, `[S]`.
        each: every member's value, `[S, M]`.
        value: the interquartile mean over members `[S]`; the value itself if there is one member.
        low: lower end of its 95% interval `[S]`; NaN if there is one member.
        high: upper end.
    """

    run: Run
    panel: Panel
    steps: NDArray[np.int64]
    each: Array
    value: Array
    low: Array
    high: Array

    @property
    def steps_done(self) -> NDArray[np.int64]:
        """Global steps that the measured weights have behind them, `[S]`."""
        return self.steps + self.panel.after

    def last(self) -> tuple[int, float, float, float] | None:
        """Steps done, value, low and high where last known."""
        known = np.flatnonzero(np.isfinite(self.value))
        if not len(known):
            return None
        i = known[-1]
        return int(self.steps_done[i]), float(self.value[i]), float(self.low[i]), float(self.high[i])


def curve(run: Run, panel: Panel) -> Curve | None:
    """The curve of a quantity, None where the run did not log it."""
    series = run.logged.get(panel.key)
    if series is None:
        return None
    value, low, high = estimate(series.values)
    return Curve(run=run, panel=panel, steps=series.steps, each=series.values, value=value, low=low, high=high)


def estimate(values: Array) -> tuple[Array, Array, Array]:
    """Interquartile mean over members with its 95% percentile bootstrap interval, each `[S]`.

    Members are resampled, 2000 times with a fixed seed, the same ones at every step. Below four members nothing is
    trimmed, and the interval is a poor one. A step at which a member has no value has none.

    Args:
        values: `[S, M]`.
    """
    empty = np.full(len(values), np.nan)
    if values.shape[1] == 1:
        return values[:, 0], empty, empty
    known = np.isfinite(values).all(-1)
    value, low, high = empty.copy(), empty.copy(), empty.copy()
    if known.any():
        value[known] = interquartile_mean(values[known])
        low[known], high[known] = _interval(values[known])
    return value, low, high


def interquartile_mean(values: Array, axis: int = -1) -> Array:
    """Mean of the middle half of the members.

    Example:
        >>> float(interquartile_mean(np.array([0.0, 1.0, 2.0, 90.0])))
        1.5
    """
    return np.asarray(stats.trim_mean(values, TRIMMED, axis=axis))


def _interval(values: Array) -> tuple[Array, Array]:
    found = stats.bootstrap(
        (values,),
        interquartile_mean,
        vectorized=True,
        axis=-1,
        n_resamples=RESAMPLES,
        batch=max(1, HELD // values.size),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return np.asarray(found.confidence_interval.low), np.asarray(found.confidence_interval.high)
