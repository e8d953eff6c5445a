"""The evidence that a recipe is asked for before it goes to a cluster: its twin in the simulator, on long responses.

The twin has the recipe's method, its N, its groups and the length of its responses as far as the trial reaches; the
engines get a discrepancy that stands for the target's. Where the recipe has an exact form, it follows exact expected
updates, at any length up to `Extent.longest`; else updates over a few sampled responses, of `sampled_longest` tokens. A
twin that is unstable is tried once more with one part changed at a time, which gives the cause and the remedy.

Shapes: S seeds, K exact evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe, check_runs, fingerprint
from firstorder.core.training.loop import check_trainable
from firstorder.sim.config import Numerics
from firstorder.sim.exact.scene import Mode
from firstorder.sim.sweep.ensemble import Cell

from .borders import Border, Crossed, crossed
from .borders import read as read_borders
from .calibrate import PUBLISHED_FLIPS, PUBLISHED_KL, Calibration, calibrate
from .collapse import collapsed
from .compare import final, interquartile_mean, lead
from .followed import followed
from .long import course
from .neighbours import PART, SELF, Extent, Neighbour, exact, neighbours, world
from .runs import Series, series, trained
from .statistics import Estimate, share

CALIBRATION_SEEDS = 8
UNSTABLE = 0.25  # share of the seeds
EXACT = ("gradient_error", "gradient_error_natural", "replay_bias", "value_error")
RULE = (
    f"unstable if at least {UNSTABLE:.0%} of the seeds collapse (core.collapse), what a policy starts with being "
    "something to lose, or if the recipe lies beyond a border that runs have found; the smallest change that is stable "
    "changes the fewest parts, then has the largest lead in final J of pi"
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """The discrepancy of the engines that the recipe will meet.

    Args:
        kl: KL(μ_old ‖ π_old), nats a response token, with π_old replaying as `mode` says.
        flip_rate: share of (token, layer).
        mode: replay under which `kl` was taken.
        source: where the two numbers come from.
    """

    kl: float
    flip_rate: float
    mode: Mode
    source: str


PUBLISHED = Target(
    kl=PUBLISHED_KL,
    flip_rate=PUBLISHED_FLIPS,
    mode="disabled",
    source="arXiv 2510.11370: Qwen3-30B-A3B with FP8 rollouts",
)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the twin or a neighbour came to: share and means over seeds with 95% intervals, its lead over the twin; of
    the exact errors the mean over seeds at the first evaluation, and the largest such mean, of seeds that have one
    (NaN if none ever has); and the `part` that it changes, a key of `PART`."""

    part: str | None
    collapsed: Estimate
    final_j: Estimate
    lead: Estimate
    first: Mapping[str, float]
    worst: Mapping[str, float]

    @property
    def stable(self) -> bool:
        """Whether few enough of its seeds collapse."""
        return self.collapsed.value < UNSTABLE


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What was tried.

    Args:
        horizon: tokens of a response.
        length: tokens of the recipe's longest response, which the trial stands for.
        responses: of an update; None where it is the exact expected one.
        extent: how much was trained.
    """

    horizon: int
    length: int
    responses: int | None
    extent: Extent

    @property
    def sampled(self) -> bool:
        """Whether updates were over sampled responses."""
        return self.responses is not None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The evidence on one recipe.

    Args:
        recipe: its fingerprint.
        target: the discrepancy that was asked for.
        calibration: the noise that stands for it, and what it gives.
        tried: the length and the kind of updates.
        trials: by name, the twin under `SELF`, and its neighbours if it is unstable.
        borders: that are known.
        crossed: those beyond which the recipe lies at its own length.
    """

    recipe: str
    target: Target
    calibration: Calibration
    tried: Tried
    trials: Mapping[str, Trial]
    borders: Sequence[Border] = ()
    crossed: Sequence[Crossed] = ()

    @property
    def stable(self) -> bool:
        """Whether the recipe may go on; see `RULE`."""
        return self.trials[SELF].stable and not self.crossed

    @property
    def remedy(self) -> str | None:
        """The smallest change that is stable; None if the recipe needs none, or no neighbour is."""
        if self.trials[SELF].stable:
            return self.crossed[0].remedy if self.crossed else None
        mended = [name for name, each in self.trials.items() if each.part is not None and each.stable]
        return max(mended, key=lambda name: self.trials[name].lead.value, default=None)

    @property
    def cause(self) -> str | None:
        """Why it is unstable, in words; None if it is not."""
        if self.stable:
            return None
        if self.trials[SELF].stable:
            one = self.crossed[0]
            return f"{one.cause}: {_reach(one)}"
        if self.remedy is None:
            return "none of the neighbours is stable"
        mended, seeds = self.trials[self.remedy], self.tried.extent.seeds
        assert mended.part is not None
        return (
            f"{PART[mended.part]}: with {self.remedy} {round(mended.collapsed.value * seeds)} of {seeds} seeds collapse"
        )

    @property
    def extrapolation(self) -> str:
        """What is said of the recipe beyond the trial, and from what."""
        if self.tried.horizon >= self.tried.length:
            return "none: it was tried at its own length"
        beyond = f"from {self.tried.horizon} tokens to {self.tried.length}"
        if not self.borders:
            return f"none: no border is known, so nothing is said {beyond}"
        if not self.crossed:
            return f"{beyond}: it lies beyond none of the known borders"
        return f"{beyond}: {'; '.join(map(_reach, self.crossed))}"

    def json(self) -> dict[str, Any]:
        """Plain numbers."""
        trials = {
            name: {
                "run": f"{number:04d}",
                "part": trial.part,
                "stable": trial.stable,
                "collapsed": trial.collapsed.json(),
                "final_j_pi": trial.final_j.json(),
                "lead": trial.lead.json(),
                "first": dict(trial.first),
                "worst": dict(trial.worst),
            }
            for number, (name, trial) in enumerate(self.trials.items())
        }
        return {
            "recipe": self.recipe,
            "rule": RULE,
            "stable": self.stable,
            "cause": self.cause,
            "remedy": self.remedy,
            "tried": asdict(self.tried),
            "extrapolation": {"said": self.extrapolation, "crossed": [each.json() for each in self.crossed]},
            "target": asdict(self.target),
            "calibration": asdict(self.calibration),
            "trials": trials,
        }


def judge(
    recipe: Recipe,
    target: Target,
    out: Path,
    length: int,
    *,
    horizon: int | None = None,
    extent: Extent | None = None,
    borders: Sequence[Border] | None = None,
) -> Evidence:
    """Calibrate the engines, train the twin, where it is unstable its neighbours too, and read what they came to.

    Args:
        recipe: the method and its N.
        target: the discrepancy.
        out: a folder for the run folders, `cells/NAME`; finished ones are not trained again.
        length: tokens of the recipe's longest response.
        horizon: tokens of a response in the trial; None for the recipe's own, as far as the trial reaches.
        extent: how much is trained; None for what is shipped.
        borders: that are known; None for those that are shipped.

    Raises:
        ConfigError: the recipe cannot be trained.
        DataError: the shipped borders are damaged.
    """
    check_runs(recipe)
    check_trainable(recipe)
    extent = extent or Extent()
    known = read_borders() if borders is None else tuple(borders)
    sampled = not exact(recipe)
    reach = extent.sampled_longest if sampled else extent.longest
    tried = Tried(
        horizon=min(length, reach) if horizon is None else horizon,
        length=length,
        responses=extent.prompts * extent.group if sampled else None,
        extent=extent,
    )
    near = neighbours(recipe, extent, sampled=sampled)
    calibration = calibrate(
        world(near[SELF].recipe, tried.horizon, Numerics(), extent, sampled=sampled),
        torch.arange(CALIBRATION_SEEDS),
        wanted_kl=target.kl,
        wanted_flips=target.flip_rate,
        mode=target.mode,
    )
    cells = {
        name: Cell(
            name=f"{number:04d}",  # as `Evidence.json` says
            point={"trial": name},
            recipe=each.recipe,
            sim=world(each.recipe, tried.horizon, calibration.numerics, extent, sampled=sampled),
        )
        for number, (name, each) in enumerate(near.items())
    }
    trials = _tried({SELF: cells[SELF]}, near, tried, out)
    if not trials[SELF].stable:
        trials = _tried(cells, near, tried, out)
    return Evidence(
        recipe=fingerprint(recipe),
        target=target,
        calibration=calibration,
        tried=tried,
        trials=trials,
        borders=known,
        crossed=crossed(known, recipe, horizon=length, kl=target.kl) if length > tried.horizon else (),
    )


def _tried(cells: Mapping[str, Cell], near: Mapping[str, Neighbour], tried: Tried, out: Path) -> dict[str, Trial]:
    """Train what is missing and read it."""
    (trained if tried.sampled else followed)(list(cells.values()), out)
    runs = {name: series(out / "cells" / cell.name, cell.recipe.schedule.steps) for name, cell in cells.items()}
    return {name: trial(run, runs[SELF], near[name].part, tried.extent.value) for name, run in runs.items()}


def trial(found: Series, own: Series, part: str | None, value: float) -> Trial:
    """What a run folder of the ensemble says, beside that of the twin; `value` is J of π before the first update."""
    # an error relative to a gradient has no value where a policy has lost all of it
    means = {name: known[~known.isnan()] for name in EXACT for known in [found[f"exact/{name}"].nanmean(0)]}
    return Trial(
        part=part,
        collapsed=share(collapsed(course(found["exact/j_pi"], value))),
        final_j=interquartile_mean(final(found)),
        lead=lead(found, own),
        first={name: float(each[0]) if len(each) else math.nan for name, each in means.items()},
        worst={name: float(each[each.abs().argmax()]) if len(each) else math.nan for name, each in means.items()},
    )


def check_evidence(recipe: Recipe, other: str, where: str) -> None:
    """Refuse evidence of another recipe, given its fingerprint.

    Raises:
        ConfigError: the fingerprints differ.
    """
    own = fingerprint(recipe)
    if other != own:
        raise ConfigError(
            f"{where} is evidence of another recipe (hash {other[:12]}, and this one has {own[:12]}); "
            "give evidence of this method with this many minibatches, or none"
        )


def _reach(one: Crossed) -> str:
    """A border in words, with how far beyond it the recipe lies."""
    axis = {"horizon": "tokens", "minibatches": "updates a rollout"}[one.axis]
    points = " and ".join(f"{each.high:g} at KL {each.kl:g}" for each in one.known)
    return f"unstable from {one.border:.4g} {axis} on (known: {points}), and this has {one.at:g}"
