"""Ensembles for claims: policies × perturbation draws on the member axis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import build as build_recipe
from firstorder.core.settings.toml import read
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim
from firstorder.sim.exact.scene import Engines, Mode, Scene, build, engines, grow
from firstorder.sim.exact.world import World
from firstorder.sim.model.policy import Weights
from firstorder.sim.trials.budget import Budget


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Members m = policy · draws + draw over one tree.

    `seeds` `[M]` name the policies, `noise` `[M]` the perturbation draws, `owner` `[M]` the policy's position.
    """

    sim: Sim
    world: World
    seeds: Tensor
    noise: Tensor
    owner: Tensor

    @property
    def policies(self) -> int:
        """Number of policies."""
        return int(self.owner[-1]) + 1

    def engines(self, scale: float) -> Engines:
        """Both engines, μ perturbed by relative noise `scale`."""
        return engines(self.sim, self.noise, torch.full(self.noise.shape, scale, dtype=torch.float64))

    @cached_property
    def weights(self) -> Weights:
        """θ_old of every member."""
        return starting_weights(self.sim, self.seeds)

    def scene(self, scale: float, modes: Iterable[Mode], *, theta: Weights | None = None, grad: bool = True) -> Scene:
        """All passes at one perturbation; without `grad` for values only, which is faster."""
        with torch.set_grad_enabled(grad):
            return build(self.sim, self.world, self.engines(scale), self.weights, theta, modes)

    def per_policy(self, values: Tensor) -> Tensor:
        """Member values `[M]` added up over the draws of each policy, `[policies]`."""
        return torch.zeros(self.policies, dtype=torch.float64).index_add(0, self.owner, values.double())


def ensemble(budget: Budget, sim: Sim | None = None) -> Ensemble:
    """The members that a budget buys."""
    sim = sim or Sim()
    world = grow(sim)
    owner = torch.arange(budget.policies).repeat_interleave(budget.draws)
    seeds = budget.first_seed + owner
    noise = seeds * 1000 + torch.arange(budget.draws).repeat(budget.policies)
    return Ensemble(sim=sim, world=world, seeds=seeds, noise=noise, owner=owner)


@lru_cache
def recipe(name: str) -> Recipe:
    """A shipped recipe."""
    return build_recipe(Recipe, read(name))
