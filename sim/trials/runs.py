"""The runs behind the training claims: a grid of recipes, discrepancies, learning rates and schedules over seeds.

Shapes: S seeds, K exact evaluations.

A condition is where recipes are compared: same engines, schedule, learning rate, start and seeds. Every number was
fixed on seeds below 1000; verdicts are reported on seeds from 1000.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from firstorder.core.method.recipe import Recipe
from firstorder.core.runs.logs import whole
from firstorder.core.settings.toml import build, read
from firstorder.sim.config import Numerics, Sim
from firstorder.sim.sweep.ensemble import STOPPED, Cell
from firstorder.sim.sweep.plan import train
from firstorder.sim.sweep.pool import open_executor
from firstorder.sim.tasks.demonstrations import Style

from .budget import Budget
from .calibrate import PUBLISHED_FLIPS, PUBLISHED_KL, Calibration, calibrate
from .followed import followed

PROMPTS, GROUP = 4, 8  # of a mini-batch
EVALUATIONS = 10
UPDATES = {False: 160, True: 80}  # of a run; fewer for a quick look
NOISE = {"wide": Numerics(kind="noise", scale=0.5), "extreme": Numerics(kind="noise", scale=1.0)}
STYLES: tuple[Style, ...] = ("terse", "verbose", "roundabout")
ALWAYS = ("minirl", "minirl-no-is", "minirl-length-norm", "minirl-r3")  # in every condition with N = 1
ON_POLICY = (*ALWAYS, "minirl-r3-no-is", "minirl-r3-length-norm")
OFF_POLICY = ("minirl", "minirl-no-clip", "minirl-r2", "minirl-r2-no-clip", "minirl-r3", "minirl-r3-no-clip")
STALE = ("minirl", "minirl-no-clip", "minirl-no-is", "reinforce-n64")
COLD = ("minirl-r2", "minirl-no-clip")
LOGGED = ("kl", "update/entropy", "route/flip_rate")


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Where recipes are compared: the engines' `discrepancy`, published, wide or extreme; N updates a rollout; the
    learning rate; the longest response; the style of the cold start; and how many times longer it is trained."""

    discrepancy: str
    updates: int
    lr: float
    horizon: int = 3
    style: Style = "terse"
    longer: int = 1

    def __str__(self) -> str:
        """Short, and a file name."""
        return f"{self.discrepancy}-n{self.updates}-lr{self.lr:.0e}-t{self.horizon}-{self.style}"


C = TypeVar("C")  # a condition
Series = dict[str, Tensor]
"""By logged name, `[S, K]`: every seed at every exact evaluation."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """All series by condition and recipe, and the engines that stand for the published discrepancy."""

    series: Mapping[Condition, Mapping[str, Series]]
    published: Calibration

    def of(self, *recipes: str, **wanted: Any) -> dict[Condition, Mapping[str, Series]]:
        """The conditions that hold all these recipes and whose fields have these values."""
        return {
            condition: found
            for condition, found in self.series.items()
            if set(recipes) <= found.keys() and all(getattr(condition, key) == v for key, v in wanted.items())
        }


def conditions(*, quick: bool) -> dict[Condition, tuple[str, ...]]:
    """Every condition with its recipes."""
    wanted: dict[Condition, tuple[str, ...]] = {}
    on = [("published", 0.003), ("wide", 0.003), ("extreme", 0.003), ("published", 0.01)]
    off = [("wide", 4), ("published", 8), ("wide", 8), ("published", 2)]
    for discrepancy, lr in on[:2] if quick else on:
        wanted[Condition(discrepancy=discrepancy, updates=1, lr=lr)] = ON_POLICY
    for discrepancy, n in off[:1] if quick else off:
        wanted[Condition(discrepancy=discrepancy, updates=n, lr=0.01)] = OFF_POLICY
    wanted[Condition(discrepancy="published", updates=64, lr=0.006, longer=4)] = STALE
    if not quick:
        wanted[Condition(discrepancy="wide", updates=1, lr=0.003, horizon=4)] = ALWAYS
    for style in () if quick else STYLES:
        wanted[Condition(discrepancy="published", updates=2, lr=0.005, style=style, longer=3)] = COLD
    return wanted


def cells(budget: Budget, published: Numerics) -> dict[tuple[Condition, str], Cell]:
    """One cell of a sweep for each condition and recipe."""
    by_condition = {}
    for condition, names in conditions(quick=is_quick(budget)).items():
        world = setting(condition, budget, published)
        for name in names:
            cell = f"{condition}-{name}"
            recipe = method(name, condition, length(condition, budget))
            by_condition[condition, name] = Cell(name=cell, point={"cell": cell}, recipe=recipe, sim=world)
    return by_condition


def length(condition: Condition, budget: Budget) -> int:
    """Updates of a run."""
    return UPDATES[is_quick(budget)] * condition.longer


def is_quick(budget: Budget) -> bool:
    """Whether a budget buys only a first look."""
    return budget.policies < 16


def setting(condition: Condition, budget: Budget, published: Numerics) -> Sim:
    """The `[sim]` section of a condition; every run is evaluated exactly `EVALUATIONS` times."""
    steps = length(condition, budget) // condition.updates
    return Sim(
        vocab=8 if condition.horizon == 3 else 6,
        horizon=condition.horizon,
        pool=32 if condition.horizon == 3 else 25,
        coldstart=condition.style,
        coldstart_steps=20,
        numerics=NOISE.get(condition.discrepancy, published),
        members=budget.policies,
        seed=budget.first_seed,
        evaluate_every=max(1, steps // EVALUATIONS),
        checkpoint_every=steps,
    )


def method(name: str, condition: Condition, updates: int) -> Recipe:
    """A shipped recipe with the condition's schedule and learning rate."""
    tree = read(name)
    n = condition.updates
    schedule = {"steps": updates // n, "prompts": PROMPTS * n, "group_size": GROUP, "minibatches": n}
    return build(Recipe, {**tree, "schedule": schedule, "optimizer": {"lr": condition.lr}})


@lru_cache
def publish(budget: Budget) -> Calibration:
    """The noise that comes closest to the published discrepancy, at the start of training, on seeds below 1000."""
    example = Condition(discrepancy="wide", updates=1, lr=0.003)
    world = setting(example, budget, NOISE[example.discrepancy])
    return calibrate(world, torch.arange(16), wanted_kl=PUBLISHED_KL, wanted_flips=PUBLISHED_FLIPS)


@lru_cache
def runs(budget: Budget) -> Runs:
    """Train what the budget's folder does not hold yet, in as many processes as there are cores, and read it all."""
    published = publish(budget)
    wanted = cells(budget, published.numerics)
    return Runs(series=gathered(wanted, budget.folder), published=published)


def trained(cells: Sequence[Cell], out: Path, *, logs: bool = True) -> None:
    """Train the cells that a folder does not hold yet, in as many processes as there are cores; without `logs`, those
    that follow exact expected updates draw no responses (`followed`)."""
    missing = [cell for cell in cells if not cell.finished(out)]
    silent = [cell for cell in missing if not logs and cell.sim.update == "expected"]
    followed(silent, out)
    drawn = [cell for cell in missing if cell not in silent]
    if drawn:
        train(drawn, out, open_executor("local"))


def gathered(cells: Mapping[tuple[C, str], Cell], out: Path | None, *, logs: bool = True) -> dict[C, dict[str, Series]]:
    """What every run logged by condition and recipe, trained first where the folder does not hold it; None for a folder
    that is thrown away; `logs` as of `trained`."""
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return gathered(cells, Path(folder), logs=logs)
    trained(list(cells.values()), out, logs=logs)
    logged: dict[C, dict[str, Series]] = {}
    for (condition, name), cell in cells.items():
        logged.setdefault(condition, {})[name] = series(out / "cells" / cell.name, cell.recipe.schedule.steps)
    return logged


def series(folder: Path, steps: int) -> Series:
    """What a run of so many steps logged at its exact evaluations.

    Raises:
        DataError: the log is damaged, and would give another verdict.
    """
    least = 0 if (folder / STOPPED).is_file() else steps
    lines = whole(folder / "metrics.jsonl", least, f"remove {folder}, and it is trained again")
    rows = [line for line in lines if "exact/j_pi" in line]
    names = [name for name in rows[0] if name.startswith("exact/") or name in LOGGED]
    return {name: torch.tensor([_numbers(row[name]) for row in rows], dtype=torch.float64).T for name in names}


def _numbers(logged: list[float | None]) -> list[float]:
    """A log's null is a quantity that had no value, such as an error relative to a gradient of 0: NaN."""
    return [math.nan if value is None else value for value in logged]
