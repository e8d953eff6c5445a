"""Staleness: θ after s plain-SGD steps from θ_old, on prompts other than those measured."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from firstorder.core.recipe import Recipe

from .config import Sim
from .exact import gradient, update
from .policy import Weights, flatten, unflatten
from .scene import Engines, build, grow


def path(sim: Sim, pair: Engines, theta_old: Weights, steps: int, recipe: Recipe | None = None) -> Iterator[Weights]:
    """θ after 0, 1, ..., `steps` steps of size `sim.lr`.

    Each step goes along the exact ∇J_seq of the natural target, so that every recipe is compared at the same θ;
    or, given a recipe, along that recipe's own exact expected update at (θ, θ_old, μ_old).
    """
    yield theta_old
    if not steps:
        return
    tree, rewards = grow(sim, others=True)
    mode = "disabled" if recipe is None else recipe.router_replay.mode
    theta = theta_old
    for _ in range(steps):
        scene = build(sim, tree, rewards, pair, theta_old, theta, modes=[mode])
        slope = gradient(scene, "disabled") if recipe is None else update(scene, recipe)
        theta = advance(theta, slope, sim.lr)
        yield theta


def advance(theta: Weights, slope: Tensor, lr: float) -> Weights:
    """θ + lr · slope; the selection bias is no parameter and stays."""
    trained = {name: w for name, w in theta.items() if name != "bias"}
    return theta | unflatten(flatten(trained) + lr * slope, trained)
