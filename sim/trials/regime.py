"""The regimes of the map: engines so far apart, responses so long, updates so stale; and what recipes come to there.

The world is that of `firstorder.sim.trials.long`, small enough for thousands of points: two problems of four positions.
Its MoE chooses 6 of 24 experts, since their flips cost about what the published pair's do: at 1.5e-3 nats a token and
10% flips R3 leaves 1.0e-3 nats here, and 7.5e-4 there (arXiv 2510.11370); with 2 of 8 experts 10% flips alone cost more
than 1.5e-3, and with 8 of 32 hardly anything.

A step of staleness has a size that is measured, as KL(π_old ‖ π_θ) in nats a token after the first.

Shapes: M members, S steps of staleness, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core import progress
from firstorder.core.method.recipe import Recipe
from firstorder.core.routing import flips
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim
from firstorder.sim.exact.edges import Pass, entropy, kl, vjp
from firstorder.sim.exact.graph import Graph
from firstorder.sim.exact.objectives import slopes, value
from firstorder.sim.exact.scene import Engines, build, engines, grow
from firstorder.sim.exact.staleness import advance
from firstorder.sim.exact.world import World
from firstorder.sim.model.policy import Weights, leaves, load

from .calibrate import Calibration, calibrate
from .long import LongCondition
from .moments import moments
from .rated import Rated, groups, rated

WORLD = (
    ("experts", 24),
    ("top_k", 6),
    ("expert_width", 4),
    ("width", 16),
    ("positions", 4),
)
PROBLEMS = 2
HALVINGS = 40  # of a factor of 1e9 in which a step size is looked for: 1e-3 of it is left
SMALLEST_STEP = 1e-5


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

    def sim(self, seeds: range) -> Sim:
        """The `[sim]` section, its engines yet to be fitted."""
        extra = (*WORLD, ("right", self.right))
        return LongCondition(horizon=self.horizon, problems=PROBLEMS, sim=extra).world(seeds)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was measured in a regime; means over members unless a shape is given.

    Args:
        engines: the noise that stands for the two engines, with the KL and the flips that it gives.
        fits: whether these are near enough to what was wanted; if not, nothing else is measured.
        kl_replayed: the KL that R3 leaves.
        entropy: of π_old, nats a token.
        j_pi, j_mu: what π_old and μ_old earn.
        moved, flipped: KL(π_old ‖ π_θ) and flips between the two after each number of updates, `[S]`.
        rated: what the recipes come to, its fields with S in front.
    """

    engines: Calibration
    fits: bool
    kl_replayed: float = math.nan
    entropy: float = math.nan
    j_pi: float = math.nan
    j_mu: float = math.nan
    moved: Sequence[float] = ()
    flipped: Sequence[float] = ()
    rated: Rated | None = None


def measured(
    regime: Regime, seeds: range, recipes: Sequence[Recipe], sizes: Sequence[int], steps: int, miss: float
) -> Found:
    """Measure recipes in a regime, at 0, ..., `steps` - 1 updates of staleness.

    Args:
        regime: with an engine pair that exists; what it misses stands in `engines.residuals`.
        seeds: of the policies, M.
        recipes: as of `rated`.
        sizes: of a group, G.
        steps: S.
        miss: by how much the logarithms of KL and flips may be off what was wanted.
    """
    sim, members = regime.sim(seeds), torch.arange(seeds.start, seeds.stop)
    fitted = calibrate(sim, members, wanted_kl=regime.kl, wanted_flips=regime.flips, beside="head")
    if max(map(abs, fitted.residuals)) > miss:
        return Found(engines=fitted, fits=False)
    sim = sim.model_copy(update={"numerics": fitted.numerics})
    world, pair, start = grow(sim), engines(sim, members), starting_weights(sim, members)
    assert isinstance(world, Graph)
    modes = {str(each.router_replay) for each in recipes} | {"R3"}
    thetas = course(sim, world, pair, start, regime.step, steps)
    scenes = [build(sim, world, pair, start, theta, modes) for theta in thetas]
    of_mu = moments(world, scenes[0].mu_old.logp)
    advantages = groups(world.levels, of_mu, recipes, sizes)
    stages = [rated(scene, recipes, of_mu, advantages) for scene in progress.steps("staleness", scenes)]
    first, share = scenes[0], scenes[0].share
    old, mu = first.old["disabled"], first.mu_old.logp
    return Found(
        engines=fitted,
        fits=True,
        kl_replayed=_mean(share, kl(mu, first.old["R3"].logp)),
        entropy=_mean(share, entropy(old.logp)),
        j_pi=float(value(old.logp, world).mean()),
        j_mu=float(value(mu, world).mean()),
        moved=[_mean(share, kl(old.logp, scene.target["disabled"].logp.detach())) for scene in scenes],
        flipped=[_mean(share, _flips(old, scene.target["disabled"])) for scene in scenes],
        rated=_stacked(stages),
    )


def course(
    sim: Sim, world: World, pair: Engines, start: Weights, step: float, count: int
) -> Iterator[Weights]:
    """θ after 0, ..., `count` - 1 updates along the exact ∇J_seq of the natural target on other prompts, each of the
    size at which the first moves every member by `step` nats a token."""
    yield start
    if count == 1:
        return
    others, theta = grow(sim, others=True), start
    slope = _slope(sim, others, pair, theta)
    size = _size(sim, world, pair, start, slope, step)
    for number in range(count - 1):
        theta = advance(theta, size[:, None] * (slope if number == 0 else _slope(sim, others, pair, theta)), 1.0)
        yield theta


def _size(sim: Sim, world: World, pair: Engines, start: Weights, slope: Tensor, step: float) -> Tensor:
    """The size of a step that moves π by `step` nats a token, `[M]`, by halving its logarithm."""
    with torch.no_grad():
        old = world.run(load(start, pair.pi, sim)).logp
        visits = world.visits(old.exp())
        share = visits / visits.sum(-1, keepdim=True)
        low = torch.full((len(slope),), SMALLEST_STEP, dtype=torch.float64).log()
        high = low + 9 * torch.log(torch.tensor(10.0, dtype=torch.float64))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            moved = world.run(load(advance(start, middle.exp()[:, None] * slope, 1.0), pair.pi, sim)).logp
            far = (share * kl(old, moved)).sum(-1) > step
            low, high = torch.where(far, low, middle), torch.where(far, middle, high)
    return low.exp()


def _slope(sim: Sim, world: World, pair: Engines, theta: Weights) -> Tensor:
    """∇J_seq of π_θ with live routes, `[M, P]`."""
    weights = leaves(theta)
    target = world.run(load(weights, pair.pi, sim))
    return vjp(target, slopes(target.logp.detach(), world), weights)


def _flips(a: Pass, b: Pass) -> Tensor:
    return flips(a.routes.contexts, b.routes.contexts).double().mean(-1)


def _mean(share: Tensor, values: Tensor) -> float:
    """Per response token of μ_old, the mean over members."""
    return float((share * values).sum(-1).mean())


def _stacked(stages: Sequence[Rated]) -> Rated:
    names = ("error", "cosine", "noise", "ess", "sequence_ess")
    return Rated(**{name: torch.stack([getattr(one, name) for one in stages]) for name in names})
