"""Curves of members: interquartile mean with a bootstrap interval. Shapes: S logged steps, M members."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firstorder.sim.trials.statistics import interval, middle_mean

from .catalogue import Panel
from .runs import Array, Run

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
        value[known] = middle_mean(values[known])
        low[known], high[known] = interval([values[known]], middle_mean, max(1, HELD // values[known].size))
    return value, low, high
