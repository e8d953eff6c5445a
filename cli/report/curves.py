"""Curves of members: interquartile mean with a bootstrap interval, of each step and of a window that ends with it.

What is exact is read as it is; what is sampled varies from batch to batch, so that its mean over a window is read.

Shapes: S logged steps, M members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from firstorder.core.runs.windows import trailing, width
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
        window: how many logged steps a mean is over, this one and those before it; 1 for what is exact.
        mean: as `value`, of every member's mean over the window, `[S]`; so are its ends.
    """

    run: Run
    panel: Panel
    steps: NDArray[np.int64]
    each: Array
    value: Array
    low: Array
    high: Array
    window: int
    mean: Array
    mean_low: Array
    mean_high: Array

    @property
    def steps_done(self) -> NDArray[np.int64]:
        """Global steps that the measured weights have behind them, `[S]`."""
        return self.steps + self.panel.after

    def last(self) -> tuple[int, float, float, float] | None:
        """Steps done, and the mean over the window with its ends, where last known."""
        known = np.flatnonzero(np.isfinite(self.mean))
        if not len(known):
            return None
        i = known[-1]
        return int(self.steps_done[i]), float(self.mean[i]), float(self.mean_low[i]), float(self.mean_high[i])


def curve(run: Run, panel: Panel) -> Curve | None:
    """The curve of a quantity, None where the run did not log it."""
    series = run.logged.get(panel.key)
    if series is None:
        return None
    window = 1 if panel.exact else width(run.planned)
    value, low, high = own = estimate(series.values)
    means = own if window == 1 else estimate(trailing(torch.from_numpy(series.values), window).numpy())
    return Curve(
        run=run,
        panel=panel,
        steps=series.steps,
        each=series.values,
        value=value,
        low=low,
        high=high,
        window=window,
        mean=means[0],
        mean_low=means[1],
        mean_high=means[2],
    )


def windows(curves: Sequence[Curve]) -> str:
    """What the curves of a panel are means over; nothing where they are values as they are."""
    widths = sorted({curve.window for curve in curves})
    if not widths or widths[-1] == 1:
        return ""
    return f"mean of {widths[0]} steps" if len(widths) == 1 else f"mean of {widths[0]} to {widths[-1]} steps"


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
