"""The regimes of the map: engines so far apart, responses so long, updates so stale; and what recipes come to there.

The world is that of `firstorder.sim.trials.long`, small enough for thousands of points: two problems of four positions.
Its MoE chooses 6 of 24 experts, since their flips cost about what the published pair's do: at 1.5e-3 nats a token and
10% flips R3 leaves 1.0e-3 nats here, and 7.5e-4 there (arXiv 2510.11370); with 2 of 8 experts 10% flips alone cost more
than 1.5e-3, and with 8 of 32 hardly anything.

A step of staleness has a size that is measured, as KL(π_old ‖ π_θ) in nats a token after the first: 1e-4 is the
median over the first updates of training as `firstorder study samples` does it, AdamW at 5e-4, which is stable, and 1e-3
that of a step four times as large (`step_sizes`).

Shapes: M members, S steps of staleness, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from firstorder.core import progress
from firstorder.core.method.recipe import Advantage, Recipe
from firstorder.core.routing import flips
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim
from firstorder.sim.exact.edges import Pass, entropy, kl, vjp
from firstorder.sim.exact.graph import Graph
from firstorder.sim.exact.objectives import value
from firstorder.sim.exact.rollout import rollout
from firstorder.sim.exact.scene import Engines, build, engines, grow
from firstorder.sim.exact.staleness import advance
from firstorder.sim.exact.world import World
from firstorder.sim.model import noise
from firstorder.sim.model.policy import Weights, leaves, load

from .calibrate import Calibration, calibrate
from .long import LongCondition
from .moments import moments
from .rated import Rated, advantages, groups, rated

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
BATCH, GROUP = 64, 16  # of the updates that move θ: arXiv 2512.01374's mini-batch
SIGNS = torch.tensor([1.0, -1.0], dtype=torch.float64)  # of A⁺ and A⁻
SALT = 7  # keeps these draws apart from others of the same seeds


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
    fitted = _fitted(replace(regime, step=0.0), seeds)
    if max(map(abs, fitted.residuals)) > miss:
        return Found(engines=fitted, fits=False)
    sim = sim.model_copy(update={"numerics": fitted.numerics})
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


@lru_cache(maxsize=8)
def _fitted(regime: Regime, seeds: range) -> Calibration:
    """The noise of a regime's engines, whatever the step."""
    members = torch.arange(seeds.start, seeds.stop)
    return calibrate(regime.sim(seeds), members, wanted_kl=regime.kl, wanted_flips=regime.flips, beside="head")


def course(
    sim: Sim, world: World, pair: Engines, start: Weights, seeds: Tensor, step: float, count: int
) -> Iterator[Weights]:
    """θ after 0, ..., `count` - 1 updates as training makes them: along draws of a mini-batch's update on other
    prompts, all of the size at which the first moves every member by `step` nats a token.

    The draws are normal, with the mean and the covariance of the update of MiniRL without replay and clip. The exact
    gradient would be no stand-in: of a sampled update it is a small part, and what stales a policy is mostly noise.
    """
    yield start
    if count == 1:
        return
    others, theta = grow(sim, others=True), start
    assert isinstance(others, Graph)
    with torch.no_grad():
        mu = rollout(sim, others, start, pair.mu)[0].logp
        draw = Draw.of(others, mu, seeds)
    slope = _slope(sim, others, pair, theta, draw(0), mu)
    size = _size(sim, world, pair, start, slope, step)
    for number in range(1, count):
        theta = advance(theta, size[:, None] * slope, 1.0)
        yield theta
        slope = _slope(sim, others, pair, theta, draw(number), mu)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The coefficients of the scores in a mini-batch's update, `mean` and a root of their covariance, `[M, X, E]` and
    `[M, X, E, E]`; and the seeds."""

    mean: Tensor
    root: Tensor
    seeds: Tensor

    @classmethod
    def of(cls, world: Graph, mu: Tensor, seeds: Tensor) -> Draw:
        """That of `BATCH` groups of `GROUP` responses of μ."""
        found = moments(world, mu)
        group = advantages(world.levels, found.chance, Advantage(), GROUP)
        mean = torch.einsum("mxls,s,mxle->mxe", group.mean, SIGNS, found.single)
        signed = torch.einsum("mxasbt,s,t->mxab", group.cross.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)), SIGNS, SIGNS)
        square = torch.einsum("mxls,mxlef->mxef", group.own, found.pairs)
        cross = found.single.transpose(-1, -2) @ signed @ found.single
        second = square / GROUP + (1 - 1 / GROUP) * cross
        each = world.prompts * BATCH  # a prompt has 1 / X of the groups, and weighs 1 / X
        values, vectors = torch.linalg.eigh((second - mean[..., None] * mean[..., None, :]) / each)
        root = vectors * values.clamp(min=0).sqrt()[..., None, :]
        return cls(mean=mean / world.prompts, root=root, seeds=seeds)

    def __call__(self, number: int) -> Tensor:
        """Those of the update of that number, `[M, X, E]`."""
        keys = noise.combine(noise.combine(noise.mix(self.seeds), SALT), number)
        count = torch.arange(self.mean[0].numel())
        normal = noise.normal(noise.combine(keys[:, None], count)).view_as(self.mean)
        return self.mean + (self.root @ normal[..., None])[..., 0]


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


def _slope(sim: Sim, world: World, pair: Engines, theta: Weights, draw: Tensor, mu: Tensor) -> Tensor:
    """Σ_e coefficient π_θ/μ ∇ log π_θ with live routes, `[M, P]`."""
    weights = leaves(theta)
    target = world.run(load(weights, pair.pi, sim))
    return vjp(target, draw.view_as(mu) * (target.logp.detach() - mu).exp(), weights)


def _flips(a: Pass, b: Pass) -> Tensor:
    return flips(a.routes.contexts, b.routes.contexts).double().mean(-1)


def _mean(share: Tensor, values: Tensor) -> float:
    """Per response token of μ_old, the mean over members."""
    return float((share * values).sum(-1).mean())


def _stacked(stages: Sequence[Rated]) -> Rated:
    names = ("error", "cosine", "noise", "ess", "sequence_ess")
    return Rated(**{name: torch.stack([getattr(one, name) for one in stages]) for name in names})
