"""Staleness: θ after s plain-SGD steps from θ_old, on prompts other than those measured."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from firstorder.core import progress
from firstorder.core.method.recipe import Recipe
from firstorder.sim.config import Sim
from firstorder.sim.model.policy import Weights, flatten, leaves, load, unflatten

from .edges import vjp
from .measurement import update
from .objectives import slopes
from .scene import Engines, build, grow
from .world import World


def path(
    sim: Sim, arithmetics: Engines, theta_old: Weights, steps: int, recipe: Recipe | None = None
) -> Iterator[Weights]:
    """θ after 0, 1, ..., `steps` steps of size `sim.lr`.

    Each step goes along the exact ∇J_seq of the natural target, so that every recipe is compared at the same θ;
    or, given a recipe, along that recipe's own exact expected update at (θ, θ_old, μ_old).
    """
    yield theta_old
    if not steps:
        return
    world = grow(sim, others=True)
    theta = theta_old
    for _ in progress.steps("staleness", range(steps)):
        if recipe is None:
            slope = _natural(sim, world, arithmetics, theta)
        else:
            scene = build(sim, world, arithmetics, theta_old, theta, modes=[str(recipe.router_replay)])
            slope = update(scene, recipe)
        theta = advance(theta, slope, sim.lr)
        yield theta


def _natural(sim: Sim, world: World, arithmetics: Engines, theta: Weights) -> Tensor:
    """Exact ∇J_seq of π_θ with live routes, `[M, P]`."""
    weights = leaves(theta)
    target = world.run(load(weights, arithmetics.pi, sim))
    return vjp(target, slopes(target.logp.detach(), world), weights)


def advance(theta: Weights, slope: Tensor, lr: float) -> Weights:
    """θ + lr · slope."""
    return unflatten(flatten(theta) + lr * slope, theta)
