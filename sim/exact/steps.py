"""The splits of recipes at any minibatches of a step, and of many recipes at once, without doing anything twice.

What hangs on θ_old alone is done once for all minibatches; hybrids and what is made of them once for all recipes of one
target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch

from firstorder.core import memory
from firstorder.core.errors import ConfigError
from firstorder.core.finite import check_finite
from firstorder.core.method.recipe import Recipe, check_runs
from firstorder.core.threads import sized
from firstorder.sim.checks import check_replay
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim
from firstorder.sim.model.chunks import numbers

from .edges import Pass
from .game import Swapped
from .hybrids import Start, hybrids, hybrids_at_start, start
from .measure import SATURATED
from .memory import check_memory
from .scene import Mode, Scene, engines, grow
from .size import check_size, count
from .split import ALL, Splits, Way, split
from .staleness import path

LIVE: Mode = "disabled"
HELD = 6  # measurements that a split takes the memory of


def of_step(recipe: Recipe, sim: Sim) -> list[Splits]:
    """The splits of a recipe at each of its minibatches, `schedule.minibatches` of them, and at `sim.staleness`.

    Where the measured prompts are all that there are no others move θ, so that only the first is there.
    """
    more = recipe.schedule.minibatches if sim.prompts < sim.available else 1
    return [row[0] for row in splits([recipe], sim, sorted({*range(more), sim.staleness}))]


@sized(lambda recipes, sim, staleness=(0,): numbers(count(sim), sim.width))
def splits(recipes: Sequence[Recipe], sim: Sim, staleness: Sequence[int] = (0,)) -> list[list[Splits]]:
    """The splits of every recipe at each staleness, a row a minibatch.

    Args:
        recipes: the methods.
        sim: policy and engines; its own `staleness` is not read, its `lr` is the step from one minibatch to the next.
        staleness: the minibatches, ascending, counted from 0: the updates that come before each.

    Raises:
        ConfigError: a recipe cannot be run or contradicts the simulator, or several are to move θ.
        SizeError: the world does not fit in memory.
        NotFiniteError: a part is NaN or infinite.
    """
    _check(recipes, sim, max(staleness))
    members = sim.draws if sim.numerics.kind == "batch" else 1
    theta_old = starting_weights(sim, torch.tensor([sim.seed]).expand(members))
    pair, modes = engines(sim, torch.arange(members)), [*dict.fromkeys(str(each.router_replay) for each in recipes)]
    first = start(sim, grow(sim), pair, theta_old, modes)
    before = {mode: hybrids_at_start(first, mode) for mode in modes}
    mover, rows = recipes[0] if sim.direction == "recipe" else None, []
    for number, theta in enumerate(path(sim, pair, theta_old, max(staleness), mover)):
        if number in staleness:
            ways = _ways(first, first.at(theta) if number else first.scene, before)
            row = [split(ways[str(each.router_replay)], ways[LIVE], each, number) for each in recipes]
            check_finite({"split": [asdict(each) for each in row]}, SATURATED)
            rows.append(row)
    return rows


def _check(recipes: Sequence[Recipe], sim: Sim, stalest: int) -> None:
    for recipe in recipes:
        check_runs(recipe)
        check_replay(recipe, sim)
    if sim.direction == "recipe" and stalest and len(recipes) > 1:
        raise ConfigError("sim.direction = recipe moves theta by one recipe's update, got several; use natural")
    held = HELD * (sim.draws if sim.numerics.kind == "batch" else 1) * sim.passes
    check_memory(sim, held, memory.available())
    check_size(sim, held, memory.available())


def _ways(first: Start, scene: Scene, before: Mapping[Mode, Mapping[Swapped, Pass]]) -> dict[Mode, Way]:
    """The way to each target of a scene, and to the natural one; to that alone if no recipe goes there."""
    found = {mode: hybrids(first, scene, mode, old) for mode, old in before.items()}
    found.setdefault(LIVE, {ALL: scene.target[LIVE].frozen()})
    return {mode: Way(start=first, scene=scene, mode=mode, passes=passes) for mode, passes in found.items()}
