"""How thin routes are, and how often they flip: P(margin < ε) against flips of engines whose scores differ.

arXiv 2605.02124 shows that the probability of a thin margin is linear in its width, for smooth routers. If margins have
a density f at 0 and the other engine's are off by Δ, of either sign alike, f ∫ P(Δ < -m) dm = f E|Δ| / 2 of the routes
flip: f s / √π where each score is off by an independent normal error of standard deviation s. Here f E|Δ| is read of
margins below `THIN` at a noise that flips next to nothing.

Shapes: M policies, N contexts, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from firstorder.core.router import RouterKind
from firstorder.core.routing import flips
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Numerics, Sim
from firstorder.sim.exact.edges import Pass
from firstorder.sim.exact.scene import Engines, engines, grow
from firstorder.sim.exact.world import World
from firstorder.sim.model.policy import Weights, load
from firstorder.sim.trials.statistics import mean, ratio_of_means, slope

from .tightness import rollouts

WIDTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)  # of a margin, in the router's own score
SCALES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # of the noise on router logits, relative to their size
THIN = 0.01  # the width of route/thin_margin
SMALL = 1e-5  # a relative noise at which next to nothing flips, so that margins show what it does to scores
ALONE: dict[str, Any] = {"horizon": 1, "prompt_length": 1, "layers": 1, "vocab": 32, "prompts": 16}
SHORT = 4  # of the smallest widths and scales: those that slopes are taken over
JUDGED = 0.01  # the scale at which flips are compared with what margins predict


def margins(router: RouterKind, seeds: Sequence[int], updates: int = 0, *, alone: bool = False) -> dict[str, Any]:
    """Thin margins and flips of the policies of one router after so many updates.

    Args:
        router: its kind.
        seeds: of the policies.
        updates: exact ones, before margins are taken; 0 for random policies.
        alone: whether the only choice is that of one layer at one token, so that no other choice moves its scores.
    """
    numerics, top_k = Numerics(kind="noise", expert_scale=0.0), 1 if router == "top1" else 2
    sim = Sim(router=router, top_k=top_k, numerics=numerics, **ALONE if alone else {"horizon": 4})
    members, world = torch.tensor(seeds), grow(sim)
    theta = _after(sim, world, members, updates)
    pi = _passed(sim, world, theta, engines(sim, members).pi)
    reached = world.visits(pi.logp.exp())
    share = reached / reached.sum(-1, keepdim=True)

    def per_policy(x: Tensor) -> Tensor:
        return (share * x.double().mean(-1)).sum(-1)

    thin = [per_policy(pi.margin < width) for width in WIDTHS]
    flipped = [per_policy(_flips(pi, _rolled(sim, world, theta, members, scale))) for scale in SCALES]
    change = (_rolled(sim, world, theta, members, SMALL).margin - pi.margin).abs() / SMALL
    predicted = per_policy(change.where(pi.margin < THIN, 0.0)) / (2 * THIN)
    ones = torch.ones(len(members), dtype=torch.float64)
    over = [ratio_of_means(x, scale * predicted).json() for x, scale in zip(flipped, SCALES, strict=True)]
    return {
        "thin": [mean(x).json() for x in thin],
        "flips": [mean(x).json() for x in flipped],
        "width_slope": slope(WIDTHS[:SHORT], thin[:SHORT], [ones] * SHORT).json(),
        "flip_slope": slope(SCALES[:SHORT], flipped[:SHORT], [ones] * SHORT).json(),
        "density": mean(thin[WIDTHS.index(THIN)] / THIN).json(),
        "over_predicted": over,
        "judged": over[SCALES.index(JUDGED)],
    }


def _after(sim: Sim, world: World, members: Tensor, updates: int) -> Weights:
    theta = starting_weights(sim, members)
    for scene in rollouts(sim, world, engines(sim, members), theta, updates):
        theta = {name: w.detach() for name, w in scene.weights.items()}
    return theta


def _rolled(sim: Sim, world: World, theta: Weights, members: Tensor, scale: float) -> Pass:
    """μ whose router logits are off by a relative `scale`."""
    pair: Engines = engines(sim, members, torch.full(members.shape, scale, dtype=torch.float64))
    return _passed(sim, world, theta, pair.mu)


def _passed(sim: Sim, world: World, theta: Weights, arithmetic: Any) -> Pass:
    with torch.no_grad():
        return world.run(load(theta, arithmetic, sim))


def _flips(pi: Pass, mu: Pass) -> Tensor:
    """`[M, N, L]`."""
    return flips(pi.routes.contexts, mu.routes.contexts)
