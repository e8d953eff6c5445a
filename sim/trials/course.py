"""How training moves a policy between two rollouts: along updates that are mostly noise, of a size that is measured.

The updates are normal draws with the mean and the covariance of those of MiniRL without replay and clip, over a
mini-batch of other prompts than those measured. The exact gradient would be no stand-in: of a sampled update it is a
small part, so that steps along it move π by as many nats a token on what earns reward alone.

Shapes: M members, X prompts, E edges of a prompt, L reward levels, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core.method.recipe import Advantage, Optimizer
from firstorder.sim import optimizer
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim
from firstorder.sim.exact.edges import kl, vjp
from firstorder.sim.exact.graph import Graph
from firstorder.sim.exact.pairs import moments
from firstorder.sim.exact.rollout import rollout
from firstorder.sim.exact.scene import Engines, engines, grow
from firstorder.sim.exact.staleness import advance
from firstorder.sim.exact.world import World
from firstorder.sim.model import noise
from firstorder.sim.model.policy import Weights, flatten, leaves, load, unflatten

from .rated import advantages

HALVINGS = 40  # of a factor of 1e9 in which a step size is looked for: 1e-3 of it is left
SMALLEST_STEP = 1e-5
BATCH, GROUP = 64, 16  # of the updates that move θ: arXiv 2512.01374's mini-batch
SIGNS = torch.tensor([1.0, -1.0], dtype=torch.float64)  # of A⁺ and A⁻
SALT = 7  # keeps these draws apart from others of the same seeds


def course(
    sim: Sim, world: World, pair: Engines, start: Weights, seeds: Tensor, step: float, count: int
) -> Iterator[Weights]:
    """θ after 0, ..., `count` - 1 updates, all of the size at which the first moves every member by `step` nats a
    token."""
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
        signed = torch.einsum(
            "mxasbt,s,t->mxab", group.cross.view(*group.mean.shape, *group.mean.shape[2:]), SIGNS, SIGNS
        )
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
        low = torch.full((len(slope),), SMALLEST_STEP, dtype=torch.float64).log()
        high = low + 9 * torch.log(torch.tensor(10.0, dtype=torch.float64))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            moved = world.run(load(advance(start, middle.exp()[:, None] * slope, 1.0), pair.pi, sim)).logp
            far = _per_token(world, old, kl(old, moved)) > step
            low, high = torch.where(far, low, middle), torch.where(far, middle, high)
    return low.exp()


def _slope(sim: Sim, world: World, pair: Engines, theta: Weights, draw: Tensor, mu: Tensor) -> Tensor:
    """Σ_e coefficient π_θ/μ ∇ log π_θ with live routes, `[M, P]`."""
    weights = leaves(theta)
    target = world.run(load(weights, pair.pi, sim))
    return vjp(target, draw.view_as(mu) * (target.logp.detach() - mu).exp(), weights)


def step_sizes(sim: Sim, seeds: Tensor, lr: float, updates: int) -> Tensor:
    """KL(π_old ‖ π_θ) of each of the first updates of training with AdamW on such draws, one update a rollout, nats a
    token, `[updates, M]`.

    Args:
        sim: world and cold start.
        seeds: int64 `[M]`.
        lr: AdamW's.
        updates: how many.
    """
    pair, start, world = engines(sim, seeds), starting_weights(sim, seeds), grow(sim)
    assert isinstance(world, Graph)
    settings = optimizer.settings([Optimizer(lr=lr)] * len(seeds))
    vector, sizes = flatten(start), []
    state = optimizer.start(vector)
    for number in range(updates):
        theta = unflatten(vector, start)
        with torch.no_grad():
            old = world.run(load(theta, pair.pi, sim)).logp
        slope = _slope(sim, world, pair, theta, Draw.of(world, old, seeds)(number), old)
        slope, _ = optimizer.clip(-slope, settings)
        vector, state = optimizer.step(vector, slope, state, settings)
        with torch.no_grad():
            new = world.run(load(unflatten(vector, start), pair.pi, sim)).logp
        sizes.append(_per_token(world, old, kl(old, new)))
    return torch.stack(sizes)


def _per_token(world: World, logp: Tensor, values: Tensor) -> Tensor:
    """The mean of values of contexts over the tokens of a policy, `[M]`."""
    visits = world.visits(logp.exp())
    return (visits * values).sum(-1) / visits.sum(-1)
