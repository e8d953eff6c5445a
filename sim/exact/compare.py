"""Many recipes on one scene: the bias and the variance of each, and how many responses bring each equally far.

What recipes share is made once: policies, engine passes, gradients, and the directions of scores of each target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from firstorder.core import progress
from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Advantage, Ratio, Recipe, Schedule, check_runs
from firstorder.core.method.step_scale import step_scale
from firstorder.sim.checks import check_replay
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim

from . import objectives
from .accuracy import Accuracy, accuracy
from .edge_variance import edge_variance, exact
from .graph import Graph
from .measurement import Measurement
from .sampled import Interval, jackknife
from .sampled_variance import accuracy_of, sampled
from .scene import Mode, Scene, build, engines, grow
from .scores import directions
from .staleness import path
from .variance import group_variance

MOST_RESPONSES = 20_000  # above so many responses of a tree their single gradients are not formed
ON_POLICY = Recipe(advantage=Advantage(baseline="leave_one_out"), ratio=Ratio(of="none"))
"""The update of responses that the target itself samples: unbiased, with a group's baseline and no ratio."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """How good a recipe's update of one minibatch is.

    Args:
        recipe: the method.
        own: against ∇J_seq of its own target.
        natural: against ∇J_seq of the target that routes live.
        step: what `optimizer.step_scale` multiplies lr by; 1 where the recipe has none.
        left_out: the same without each block of the sample; none where all is exact.
    """

    recipe: Recipe
    own: Accuracy
    natural: Accuracy
    step: float
    left_out: Sequence[Compared] = ()

    @property
    def sampled(self) -> bool:
        """Whether bias and variance are estimates from a sample."""
        return bool(self.left_out)

    def interval(self, of: Callable[[Compared], float]) -> Interval | None:
        """The 95% interval of a number that is made of this, by jackknife over blocks of the sample; None where it is
        exact, or not finite without some block."""
        values = torch.tensor([of(each) for each in (self, *self.left_out)], dtype=torch.float64)
        return jackknife(values[0], values[1:]) if self.sampled and bool(values.isfinite().all()) else None


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A scene of one member, and what recipes on it share."""

    scene: Scene

    @cached_property
    def gradients(self) -> dict[Mode, Tensor]:
        """∇J_seq of each target, `[P]`."""
        return {mode: objectives.gradient(self.scene, mode)[0] for mode in self.scene.target}

    @cached_property
    def _directions(self) -> dict[Mode, Tensor]:
        return {}

    def directions(self, mode: Mode) -> Tensor:
        """`scores.directions` of a target."""
        if mode not in self._directions:
            self._directions[mode] = directions(self.scene, mode)
        return self._directions[mode]

    def of(self, recipe: Recipe, made: Measurement | None = None) -> Compared | None:
        """How good a recipe is here; None where no variance can be formed: above 20,000 responses of a tree, or where
        too few were drawn, or for a recipe with terms. `made` is its measurement where there is one."""
        if recipe.terms.active:
            return None  # a term holds no advantage, and the variance of a group is made of its advantages' moments
        measurement = made or Measurement(scene=self.scene, recipe=recipe)
        step = _step(measurement)
        targets = self.gradients[measurement.mode], self.gradients["disabled"]
        if not measurement.sampled and (found := self._variance(measurement)) is not None:
            groups, size = _groups(recipe)
            own, natural = (accuracy(measurement.update[0], g, found / groups, groups * size) for g in targets)
            return Compared(recipe=recipe, own=own, natural=natural, step=step)
        sample = sampled(measurement, self.directions(measurement.mode)) if _apart(self.scene) else None
        if sample is None:
            return None

        def without(block: int | None, left_out: Sequence[Compared] = ()) -> Compared:
            own, natural = (accuracy_of(sample, g, block) for g in targets)
            return Compared(recipe=recipe, own=own, natural=natural, step=step, left_out=left_out)

        return without(None, [without(block) for block in range(len(sample.cuts))])

    def _variance(self, measurement: Measurement) -> float | None:
        """Of one group, exact; None where it is not."""
        if self.scene.exhaustive:
            return float(group_variance(measurement)) if len(self.scene.responses) <= MOST_RESPONSES else None
        return float(edge_variance(measurement, self.directions(measurement.mode))) if exact(measurement) else None

    def on_policy(self, schedule: Schedule) -> Accuracy | None:
        """What as many responses are worth that the natural target itself samples, with a leave-one-out baseline: no
        mismatch, no staleness, no bias."""
        target = self.scene.target["disabled"]
        mu = replace(target, logp=target.logp.detach())
        scene = replace(self.scene, mu_old=mu, mu=mu, old=dict.fromkeys(self.scene.old, mu), readings=None, part=None)
        if scene.over is None:  # what it samples it covers
            scene = replace(scene, mask=None)
        shared = Shared(scene=scene)
        if "disabled" in self._directions:
            shared._directions["disabled"] = self._directions["disabled"]
        found = shared.of(ON_POLICY.model_copy(update={"schedule": schedule}))
        return None if found is None else found.natural


def compare(recipes: Mapping[str, Recipe], sim: Sim) -> dict[str, Compared]:
    """The bias and the variance of recipes at the same policies, engines and staleness.

    Args:
        recipes: by any name; of each `schedule` says how large a minibatch is.
        sim: policy, engines and staleness; the policy of `sim.seed` is measured.

    Returns:
        By the same names; without those whose variance cannot be formed (`Shared.of`).

    Raises:
        ConfigError: a recipe cannot be run or contradicts the simulator, or the simulator has no one rollout engine or
            moves θ by the recipe.
    """
    for recipe in recipes.values():
        check_runs(recipe)
        check_replay(recipe, sim)
    shared = Shared(scene=scene_of(sim, [str(recipe.router_replay) for recipe in recipes.values()]))
    found = {}
    for name in progress.steps("recipes", list(recipes)):
        one = shared.of(recipes[name])
        if one is not None:
            found[name] = one
    return found


def scene_of(sim: Sim, modes: Sequence[Mode]) -> Scene:
    """The scene of the policy of `sim.seed` that recipes of some replay modes share.

    Raises:
        ConfigError: there is no one rollout engine, or each recipe moves θ by itself.
    """
    if sim.numerics.kind == "batch":
        raise ConfigError("sim.numerics.kind = batch draws many rollout engines, and recipes are compared on one")
    if sim.direction == "recipe" and sim.staleness:
        raise ConfigError("sim.direction = recipe moves each recipe's target by itself; use natural to compare them")
    theta_old, arithmetics = starting_weights(sim, torch.tensor([sim.seed])), engines(sim, torch.arange(1))
    *_, theta = path(sim, arithmetics, theta_old, sim.staleness)
    return build(sim, grow(sim), arithmetics, theta_old, theta if sim.staleness else None, modes)


def _groups(recipe: Recipe) -> tuple[int, int]:
    """Groups of a minibatch, and responses of a group."""
    return recipe.schedule.prompts // recipe.schedule.minibatches, recipe.schedule.group_size


def _step(measurement: Measurement) -> float:
    if measurement.recipe.optimizer.step_scale is None:
        return 1.0
    return float(step_scale(measurement.effective_share))


def _apart(scene: Scene) -> bool:
    """Whether responses to a prompt come to contexts of its own alone, in a world whose policy carries no state."""
    return isinstance(scene.world, Graph) and scene.world.owner is not None


REPORTED: Mapping[str, Callable[[Compared], float]] = {
    "variance": lambda of: of.own.variance_raw,
    "mse": lambda of: of.own.mse,
    "mse_bias": lambda of: of.own.bias,
    "mse_variance": lambda of: of.own.variance,
    "mse_raw": lambda of: of.own.mse_raw,
    "mse_natural": lambda of: of.natural.mse,
    "mse_bias_natural": lambda of: of.natural.bias,
    "mse_variance_natural": lambda of: of.natural.variance,
    "mse_raw_natural": lambda of: of.natural.mse_raw,
    "progress": lambda of: of.natural.progress,
    "progress_ceiling": lambda of: of.natural.ceiling,
}
EQUAL = "responses_for_equal_progress"


def reported(measurement: Measurement) -> tuple[dict[str, float | None], dict[str, Interval]]:
    """What `measure` says of how good an estimate a minibatch's update is, and the intervals of what is sampled of it;
    None where no variance is formed, a gradient is 0, or a variance leaves the range of float64."""
    nothing: tuple[dict[str, float | None], dict[str, Interval]] = dict.fromkeys((*REPORTED, EQUAL)), {}
    if len(measurement.update) > 1 or not (measurement.gradient.any() and measurement.natural_gradient.any()):
        return nothing
    shared = Shared(scene=measurement.scene)
    found = shared.of(measurement.recipe, measurement)
    reference = None if found is None else shared.on_policy(measurement.recipe.schedule)
    if found is None or reference is None or not math.isfinite(found.own.variance_raw):
        return nothing
    level = reference.progress

    def needed(of: Compared) -> float:
        return of.natural.responses_for(level)

    reads = {**REPORTED, EQUAL: needed}
    intervals = {name: interval for name, read in reads.items() if (interval := found.interval(read)) is not None}
    return {name: read(found) for name, read in reads.items()}, intervals
