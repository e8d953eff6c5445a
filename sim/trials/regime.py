"""The regimes of the map: engines so far apart, responses so long, updates so stale; and what recipes come to there.

The world is that of `firstorder.sim.trials.long`, small enough for thousands of points: two problems of four positions.
Its MoE chooses 6 of 24 experts, since their flips cost about what the published pair's do: at 1.5e-3 nats a token and
10% flips R3 leaves 1.0e-3 nats here, and 7.5e-4 there (arXiv 2510.11370); with 2 of 8 experts 10% flips alone cost more
than 1.5e-3, and with 8 of 32 hardly anything.

A step of staleness has a size that is measured, as KL(π_old ‖ π_θ) in nats a token after the first: 1e-4 is the
median over the first updates of training as `firstorder study samples` does it, AdamW at 5e-4, which is stable, and
1e-3 that of a step four times as large ([`step_sizes`][firstorder.sim.trials.course.step_sizes]).

Shapes: M members, S steps of staleness, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
from torch import Tensor

from firstorder.core import progress
from firstorder.core.method.recipe import Recipe
from firstorder.core.routing import flips
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Numerics, Sim
from firstorder.sim.exact.edges import Pass, entropy, kl
from firstorder.sim.exact.graph import Graph
from firstorder.sim.exact.objectives import value
from firstorder.sim.exact.pairs import moments
from firstorder.sim.exact.scene import build, engines, grow

from .calibrate import Calibration, calibrate
from .course import course
from .long import LongCondition
from .rated import Rated, groups, rated

WORLD = (
    ("experts", 24),
    ("top_k", 6),
    ("expert_width", 4),
    ("width", 16),
    ("positions", 4),
)
PROBLEMS = 2


@dataclass(frozen=True, kw_only=True)
class Regime:
    """Where recipes are compared.

    Args:
        kl: KL(μ_old ‖ π_old), nats a response token, live routes.
        flips: share of (token, layer) whose experts differ.
        horizon: tokens of a response, T.
        right: of 8 tokens so many are right at a position: what sets the entropy.
        step: KL(π_old ‖ π_θ) after one update, nats a token.
    """

    kl: float
    flips: float
    horizon: int
    right: int
    step: float

    def __str__(self) -> str:
        """Short, and a file name."""
        return f"r{self.right}-t{self.horizon}-kl{self.kl:g}-f{self.flips:g}-s{self.step:g}"

    def sim(self, seeds: range) -> Sim:
        """The `[sim]` section, its engines yet to be fitted."""
        extra = (*WORLD, ("right", self.right))
        return LongCondition(horizon=self.horizon, problems=PROBLEMS, sim=extra).world(seeds)


FITS = 0.25  # by how much the logarithms of KL and flips may be off what was wanted


@lru_cache(maxsize=8)
def _fitted(regime: Regime, seeds: range) -> Calibration:
    members = torch.arange(seeds.start, seeds.stop)
    return calibrate(regime.sim(seeds), members, wanted_kl=regime.kl, wanted_flips=regime.flips, beside="head")


def fitted(regime: Regime, seeds: range) -> Calibration:
    """The noise of a regime's engines, whatever the step: that of the router, and of the output logits."""
    return _fitted(replace(regime, step=0.0), seeds)


def fits(found: Calibration) -> bool:
    """Whether engines are as far apart as was wanted; flips cost nats, so that not all that is wanted exists."""
    return max(map(abs, found.residuals)) <= FITS


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was measured in a regime; means over members unless a shape is given.

    Args:
        kl_replayed: the KL that R3 leaves.
        entropy: of π_old, nats a token.
        j_pi, j_mu: what π_old and μ_old earn.
        moved, flipped: KL(π_old ‖ π_θ) and flips between the two after each number of updates, `[S]`.
        rated: what the recipes come to, its fields with S in front.
    """

    kl_replayed: float
    entropy: float
    j_pi: float
    j_mu: float
    moved: Sequence[float]
    flipped: Sequence[float]
    rated: Rated


def measured(
    regime: Regime, numerics: Numerics, seeds: range, recipes: Sequence[Recipe], sizes: Sequence[int], steps: int
) -> Found:
    """Measure recipes in a regime, at 0, ..., `steps` - 1 updates of staleness.

    Args:
        regime: length, entropy and step; the engines are those of `numerics`.
        numerics: the rollout engine, from `fitted`.
        seeds: of the policies, M.
        recipes: as of `rated`.
        sizes: of a group, G.
        steps: S.
    """
    sim, members = regime.sim(seeds).model_copy(update={"numerics": numerics}), torch.arange(seeds.start, seeds.stop)
    world, pair, start = grow(sim), engines(sim, members), starting_weights(sim, members)
    assert isinstance(world, Graph)
    modes = {str(each.router_replay) for each in recipes} | {"R3"}
    thetas = course(sim, world, pair, start, members, regime.step, steps)
    scenes = [build(sim, world, pair, start, theta, modes) for theta in thetas]
    of_mu = moments(world, scenes[0].mu_old.logp)
    of_groups = groups(world.levels, of_mu, recipes, sizes)
    stages = [rated(scene, recipes, of_mu, of_groups) for scene in progress.steps("staleness", scenes)]
    first, share = scenes[0], scenes[0].share
    old, mu = first.old["disabled"], first.mu_old.logp
    targets = [scene.target["disabled"].frozen() for scene in scenes]
    return Found(
        kl_replayed=_mean(share, kl(mu, first.old["R3"].logp)),
        entropy=_mean(share, entropy(old.logp)),
        j_pi=float(value(old.logp, world).mean()),
        j_mu=float(value(mu, world).mean()),
        moved=[_mean(share, kl(old.logp, target.logp)) for target in targets],
        flipped=[_mean(share, _flips(old, target)) for target in targets],
        rated=_stacked(stages),
    )


def _flips(a: Pass, b: Pass) -> Tensor:
    return flips(a.routes.contexts, b.routes.contexts).double().mean(-1)


def _mean(share: Tensor, values: Tensor) -> float:
    """Per response token of μ_old, the mean over members."""
    return float((share * values).sum(-1).mean())


def _stacked(stages: Sequence[Rated]) -> Rated:
    names = [each.name for each in fields(Rated)]
    return Rated(**{name: torch.stack([getattr(one, name) for one in stages]) for name in names})
