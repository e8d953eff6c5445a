"""The exact expected update of every arm in training: the limit of an infinite batch of the training prompts.

    u = E_μ[Σ_t w_t ∇ log π_θ(y_t | c_t)]

with θ_old and μ_old those of the rollout over all mini-batches of a step, so that θ is stale after the first.

Shapes: M members, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.step_scale import step_scale
from firstorder.core.method.terms import check_sampled
from firstorder.core.training.arms import Arm, cuts
from firstorder.sim.checks import check_one_tail
from firstorder.sim.config import Sim
from firstorder.sim.exact.edges import vjp
from firstorder.sim.exact.forms import form
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.scene import Engines, build, world_of
from firstorder.sim.exact.world import World
from firstorder.sim.model.policy import Weights
from firstorder.sim.tasks.places import places


def training_world(sim: Sim) -> World:
    """The world of the training prompts, equally likely as they are over an epoch."""
    return world_of(sim, torch.arange(sim.training_prompts))


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What takes a sampled update to its expectation.

    Args:
        sim: sizes and engines.
        arms: recipes with their member counts.
        engines: of all members.
        world: from `training_world`.
        reference: weights of the reference policy; None where no arm has one.
    """

    sim: Sim
    arms: tuple[Arm, ...]
    engines: Engines
    world: World
    reference: Weights | None

    def update(self, old: Weights, weights: Weights) -> tuple[Tensor, Tensor]:
        """u `[M, P]` at θ = `weights` of responses from θ_old = `old`, the same object where θ has not moved; and what
        lr is multiplied by, `[M]`."""
        pieces = [self._of(arm.recipe, mine, old, weights) for arm, mine in cuts(self.arms)]
        return torch.cat([u for u, _ in pieces]), torch.cat([scale for _, scale in pieces])

    @cached_property
    def learnt(self) -> Tensor | None:
        """The contexts whose tokens are learnt from, bool `[N]`; None where all are."""
        if self.sim.update_contexts == "all":
            return None
        return places(self.sim, torch.arange(self.sim.training_prompts)).holds

    def _of(self, recipe: Recipe, mine: slice, old: Weights, weights: Weights) -> tuple[Tensor, Tensor]:
        theta_old, theta = ({name: w[mine] for name, w in all_of.items()} for all_of in (old, weights))
        scene = build(
            self.sim,
            self.world,
            self.engines.members(mine),
            theta_old,
            None if weights is old else theta,
            modes=[str(recipe.router_replay)],
            reference=reference_of(recipe, self.reference, mine),
        )
        found = Measurement(scene=scene, recipe=recipe)
        scale = (
            step_scale(found.effective_share)
            if recipe.optimizer.step_scale
            else torch.ones(len(scene.mu_old.logp), dtype=torch.float64)
        )
        if self.learnt is None:
            return found.update, scale
        return vjp(found.target, found.all_coefficients() * self.learnt[:, None], scene.weights), scale


def reference_of(recipe: Recipe, reference: Weights | None, members: slice) -> Weights | None:
    """The weights of an arm's reference policy, of those of all members; None where the arm has none."""
    if reference is None or not recipe.terms.reference_kl:
        return None
    return {name: w[members] for name, w in reference.items()}


def check_update(recipe: Recipe, sim: Sim) -> None:
    """Refuse `sim.update = expected` where there is no such update, and what only such an update knows.

    Raises:
        ConfigError: the recipe learns a critic, or has no exact form in the graph; or every batch has its own engine;
            or an engine that is drawn at every token has no one tail to leave out; or a sampled update has no such
            term; or no context is off a chain.
    """
    if sim.update_contexts == "on_chain" and (sim.update, sim.task, sim.world) != ("expected", "chain", "graph"):
        raise ConfigError(
            "sim.update_contexts = on_chain needs the expected update of contexts that merge, got sim.update = "
            f"{sim.update}, sim.task = {sim.task} and sim.world = {sim.world}; set expected, chain and graph"
        )
    check_one_tail(sim)
    if sim.update == "sampled":
        check_sampled(recipe)
        return
    if sim.numerics.kind == "batch":
        raise ConfigError(
            "sim.update = expected needs one update, but numerics.kind = batch draws many; use sim.update = sampled"
        )
    if recipe.has_critic:
        raise ConfigError(
            "sim.update = expected knows no critic that is learnt from sampled responses, got advantage.baseline = "
            f"{recipe.advantage.baseline}; use a baseline over groups or sim.update = sampled"
        )
    if (sim.world == "graph" or sim.random_readings) and form(recipe) is None:
        where = "in sim.world = graph" if sim.world == "graph" else "where sim.numerics.fresh or sim.reading_noise acts"
        other = " or sim.world = tree" if sim.world == "graph" and not sim.random_readings else ""
        raise ConfigError(
            f"sim.update = expected needs the exact expected update, and that of {recipe.about.name} has no exact form "
            f"{where}, for a bound on a product or a mean over a response; use sim.update = sampled{other}"
        )
