"""How much of each bound the exact error is: over random policies, as responses grow, and along training.

Shapes: M members.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from firstorder.core.router import RouterKind
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim
from firstorder.sim.exact import objectives
from firstorder.sim.exact.bounds import bounds
from firstorder.sim.exact.bounds_replay import replay_bounds
from firstorder.sim.exact.scene import Engines, Scene, build, engines, grow
from firstorder.sim.exact.staleness import advance, path
from firstorder.sim.exact.world import World
from firstorder.sim.model.policy import Weights
from firstorder.sim.trials.long import LongCondition

ROUTERS: tuple[RouterKind, ...] = ("softmax_topk", "topk_softmax", "sigmoid_bias", "group_limited", "top1")
NOISE = (0.003, 1.0)  # relative, log-uniform over policies
STALE, RATE = 2, 2.0  # steps that a stale policy has moved, and their size
ROLLOUT = 4  # updates that are made on one rollout of a training run
STEP = 0.2  # length of an update of a training run, in weights

Found = dict[str, Any]


def policies(router: RouterKind, horizon: int, seeds: Sequence[int], *, stale: bool) -> Found:
    """Random policies of one router and length, the noise of their rollout engines drawn at random."""
    sim = Sim(router=router, top_k=1 if router == "top1" else 2, horizon=horizon, prompts=2, lr=RATE)
    members = torch.tensor(seeds)
    low, high = NOISE
    where = torch.rand(len(seeds), generator=torch.Generator().manual_seed(seeds[0]), dtype=torch.float64)
    pair = engines(sim, members, low * (high / low) ** where)
    theta_old = starting_weights(sim, members)
    *_, theta = path(sim, pair, theta_old, STALE if stale else 0)
    with torch.no_grad():
        scene = build(sim, grow(sim), pair, theta_old, theta if stale else None)
    return of_scene(scene, ("disabled", "R2", "R3") if stale else ("disabled", "R3"))


def lengths(condition: LongCondition, seeds: range) -> Found:
    """Policies of contexts that merge, at the rollout's weights, on responses of one length."""
    sim, members = condition.world(seeds), torch.arange(seeds.start, seeds.stop)
    with torch.no_grad():
        scene = build(sim, grow(sim), engines(sim, members), starting_weights(sim, members), modes=["R3"])
    return of_scene(scene, ("disabled", "R3"))


def training(sim: Sim, seeds: range, updates: int) -> list[Found]:
    """Along a run: at the last update on each rollout, of the engines' pair then, with J(π)."""
    members = torch.arange(seeds.start, seeds.stop)
    found = []
    for scene in rollouts(sim, grow(sim), engines(sim, members), starting_weights(sim, members), updates):
        of = of_scene(scene, ("disabled", "R2", "R3"))
        found.append(of | {"j_pi": objectives.value(scene.target["disabled"].logp.detach(), scene.world).tolist()})
    return found


def rollouts(sim: Sim, world: World, pair: Engines, theta: Weights, updates: int) -> Iterator[Scene]:
    """Follows the exact gradient ∇J_seq of the natural target, each update of one length; the scene before the last
    update on each rollout."""
    theta_old = theta
    for n in range(updates):
        fresh = n % ROLLOUT == 0
        theta_old = theta if fresh else theta_old
        last = n % ROLLOUT == ROLLOUT - 1
        scene = build(sim, world, pair, theta_old, None if fresh else theta, ["R2", "R3"] if last else [])
        slope = objectives.gradient(scene, "disabled")
        if last:
            yield scene
        theta = advance(theta, slope / slope.norm(dim=-1, keepdim=True), STEP)


def of_scene(scene: Scene, modes: Iterable[str]) -> Found:
    """|error| and |replay bias| of every target, with each bound on them, lists of `[M]`, by `error` or `replay` and
    the target."""
    found: Found = {}
    for mode in modes:
        values = objectives.values(scene, mode)
        found[f"error {mode}"] = _listed(values.error, bounds(scene, mode))
        limits = replay_bounds(scene, mode)
        if limits:
            found[f"replay {mode}"] = _listed(values.replay_bias, limits)
    return found


def _listed(bounded: Tensor, limits: dict[str, Tensor]) -> dict[str, Any]:
    return {"bounded": bounded.abs().tolist(), "bounds": {name: limit.tolist() for name, limit in limits.items()}}
