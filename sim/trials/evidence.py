"""The evidence that a recipe is asked for before it goes to a cluster: its twin in the simulator, and its neighbours.

The twin has the recipe's method and its N, the engines a discrepancy that stands for the target's, and the tiny policy
a learning rate, prompts and groups of its own. Neighbours differ from it in one thing: the replay, the clip, or N
halved or doubled. All are trained on the same seeds for as many updates.

Shapes: S seeds, K exact evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe, check_runs, fingerprint
from firstorder.core.settings.toml import build
from firstorder.core.training.loop import check_trainable
from firstorder.sim.config import Sim
from firstorder.sim.exact.scene import Mode
from firstorder.sim.sweep.ensemble import Cell

from .calibrate import PUBLISHED_FLIPS, PUBLISHED_KL, Calibration, calibrate
from .compare import final, interquartile_mean, lead, share_collapsed
from .runs import Series, series, trained
from .statistics import Estimate

SEEDS = 8
FIRST_SEED = 1000
CALIBRATION_SEEDS = 8
PROMPTS, GROUP = 4, 8  # of a mini-batch
UPDATES, LEAST_STEPS, EVALUATIONS = 160, 8, 8
LR = 0.01  # of the tiny policy: where recipes with several updates a rollout come apart (docs/validate.md)
UNSTABLE = 0.25  # share of the seeds
SELF = "the recipe"
RULE = (
    f"unstable if at least {UNSTABLE:.0%} of {SEEDS} seeds collapse (core.collapse); a neighbour is safer if fewer of "
    "its seeds collapse, or as few and its lead in final J of pi, seed by seed, has an interval above 0; the safest of "
    "several has the fewest collapsed seeds, then the largest lead"
)
EXACT = ("gradient_error", "gradient_error_natural", "replay_bias", "value_error")


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
    the exact errors the mean over seeds at the first evaluation, and the largest such mean of any."""

    collapsed: Estimate
    final_j: Estimate
    lead: Estimate
    first: Mapping[str, float]
    worst: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The evidence on one recipe.

    Args:
        recipe: its fingerprint.
        target: the discrepancy that was asked for.
        calibration: the noise that stands for it, and what it gives.
        trials: by name, the twin under `SELF`.
    """

    recipe: str
    target: Target
    calibration: Calibration
    trials: Mapping[str, Trial]

    @property
    def stable(self) -> bool:
        """Whether the twin may go on; see `RULE`."""
        return self.trials[SELF].collapsed.value < UNSTABLE

    @property
    def safest(self) -> str:
        """The name of the trial that `RULE` puts first."""
        own = self.trials[SELF].collapsed.value
        safer = [
            name
            for name, each in self.trials.items()
            if each.collapsed.value < own or (each.collapsed.value == own and each.lead.low > 0)
        ]
        return min([SELF, *safer], key=lambda name: _risk(self.trials[name]))

    def json(self) -> dict[str, Any]:
        """Plain numbers."""
        trials = {
            name: {
                "run": f"{number:04d}",
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
            "safest": self.safest,
            "target": asdict(self.target),
            "calibration": asdict(self.calibration),
            "trials": trials,
        }


def judge(recipe: Recipe, target: Target, out: Path, horizon: int | None = None) -> Evidence:
    """Calibrate the engines, train the twin and its neighbours, and read what they came to.

    Args:
        recipe: the method and its N.
        target: the discrepancy.
        out: a folder for the run folders, `cells/NAME`; finished ones are not trained again.
        horizon: tokens of a response, on contexts that merge; None for the three of the tree.

    Raises:
        ConfigError: the recipe cannot be trained.
    """
    check_runs(recipe)
    check_trainable(recipe)
    calibration = calibrate(
        world(recipe, horizon),
        torch.arange(CALIBRATION_SEEDS),
        wanted_kl=target.kl,
        wanted_flips=target.flip_rate,
        mode=target.mode,
    )
    wanted = neighbours(recipe)
    cells = {
        name: Cell(
            name=f"{number:04d}",  # as `Evidence.json` says
            point={"trial": name},
            recipe=each,
            sim=world(each, horizon).model_copy(update={"numerics": calibration.numerics, "members": SEEDS}),
        )
        for number, (name, each) in enumerate(wanted.items())
    }
    trained(list(cells.values()), out)
    runs = {name: series(out / "cells" / cell.name, cell.recipe.schedule.steps) for name, cell in cells.items()}
    trials = {name: trial(run, runs[SELF]) for name, run in runs.items()}
    return Evidence(recipe=fingerprint(recipe), target=target, calibration=calibration, trials=trials)


def world(recipe: Recipe, horizon: int | None = None) -> Sim:
    """The simulator that a recipe is tried in, but for its numerics; `horizon` as of `judge`.

    Long responses have a token that leads back from a failure: without one, what follows it is never taught, and the
    engines are further apart there than any published pair is.
    """
    steps = schedule(recipe)["steps"]
    if horizon is not None:
        return Sim(
            world="graph",
            task="chain",
            vocab=8,
            right=2,
            recovery=1,
            horizon=horizon,
            prompts=8,
            coldstart="calibrated",
            seed=FIRST_SEED,
            evaluate_every=max(1, steps // EVALUATIONS),
            checkpoint_every=steps,
        )
    return Sim(
        vocab=8,
        horizon=3,
        pool=32,
        coldstart="terse",
        coldstart_steps=20,
        seed=FIRST_SEED,
        evaluate_every=max(1, steps // EVALUATIONS),
        checkpoint_every=steps,
    )


def schedule(recipe: Recipe) -> dict[str, int]:
    """The twin's schedule: the recipe's N, mini-batches of a size of its own."""
    n = recipe.schedule.minibatches
    return {
        "steps": max(LEAST_STEPS, UPDATES // n),
        "prompts": PROMPTS * n,
        "group_size": GROUP,
        "minibatches": n,
    }


def neighbours(recipe: Recipe) -> dict[str, Recipe]:
    """The twin and what differs from it in one part, each with the schedule and learning rate of the trial."""
    n, replay, clip = recipe.schedule.minibatches, recipe.router_replay.mode, recipe.clip.kind
    changes: dict[str, dict[str, dict[str, Any]]] = {SELF: {}}
    for mode in ("disabled", "R2", "R3"):
        if mode != replay:
            changes[f"router_replay.mode = {mode}"] = {"router_replay": {"mode": mode}}
    other = "minirl" if clip == "none" else "none"
    changes[f"clip.kind = {other}"] = {"clip": {"kind": other, "low": 0.2, "high": 0.27}}
    for updates in (n // 2, 2 * n):
        if updates:
            changes[f"schedule.minibatches = {updates}"] = {"schedule": {"minibatches": updates, "prompts": updates}}
    return {name: twin(recipe, change) for name, change in changes.items()}


def twin(recipe: Recipe, change: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """A recipe with some parts changed, under the schedule and learning rate of the trial."""
    tree = recipe.model_dump(exclude={"about": {"scope"}})
    changed = build(Recipe, tree | {key: tree[key] | dict(table) for key, table in change.items()})
    return changed.model_copy(
        update={
            "schedule": changed.schedule.model_copy(update=schedule(changed)),
            "optimizer": changed.optimizer.model_copy(update={"kind": "adamw", "lr": LR}),
        }
    )


def trial(found: Series, own: Series) -> Trial:
    """What a run folder of the ensemble says, beside that of the twin."""
    means = {name: found[f"exact/{name}"].mean(0) for name in EXACT}
    return Trial(
        collapsed=share_collapsed(found),
        final_j=interquartile_mean(final(found)),
        lead=lead(found, own),
        first={name: float(value[0]) for name, value in means.items()},
        worst={name: float(value[value.abs().argmax()]) for name, value in means.items()},
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


def _risk(each: Trial) -> tuple[float, float]:
    return each.collapsed.value, -each.lead.value
