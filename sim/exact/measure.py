"""Everything `firstorder measure` reports about one recipe, exact unless it carries an interval."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from firstorder.core import memory, progress
from firstorder.core.finite import check_finite
from firstorder.core.method.recipe import Recipe, check_runs
from firstorder.core.method.surrogate import receipts
from firstorder.core.quantities import means
from firstorder.core.routing import flips, jaccard
from firstorder.core.training.diagnostics import finalise, moments
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim, check_replay

from . import agree, replay
from . import updates as exact
from .bounds import bounds
from .memory import check_memory
from .sampled import Interval, jackknife, sampled_fits
from .scene import Scene, build, engines, grow, kl, token_share, token_stats
from .staleness import path
from .tree import check_size, reach
from .variance import group_variance

SATURATED = (
    "the policy is saturated or has overflowed; lower sim.sharpness, sim.lr, sim.staleness or sim.coldstart_lr, or "
    "raise sim.temperature"
)
VARIANCE_RESPONSES = 20_000  # above this many responses their single gradients are not formed


def measure(recipe: Recipe, sim: Sim) -> dict[str, Any]:
    """The exact error, bias and variance of a recipe in the simulator.

    Args:
        recipe: the method.
        sim: policy, engines and staleness.

    Returns:
        Plain numbers under the names that `docs/measure.md` defines; `intervals` holds those that were sampled.

    Raises:
        ConfigError: the recipe cannot be run, or contradicts the simulator.
        SizeError: the tree does not fit in memory.
        NotFiniteError: a result is NaN or infinite.
    """
    check_runs(recipe)
    check_replay(recipe, sim)
    members = sim.draws if sim.numerics.kind == "batch" else 1
    check_memory(sim, members, memory.available())
    check_size(sim, members, memory.available())
    scene = _scene(recipe, sim, members)
    mode = recipe.router_replay.mode
    u, g = exact.update(scene, recipe), exact.gradient(scene, mode)
    natural = exact.gradient(scene, "disabled") if mode != "disabled" else g
    draws = _values(scene, recipe) | _routes(scene, recipe)
    result, intervals = summarise(draws, u, g, natural)
    if members == 1 and recipe.weight_scope == "batch":
        intervals = sampled_fits(scene, recipe, g, natural)
    result["flip_rate_per_layer"] = _flips_per_layer(scene)
    result |= {"nodes": scene.tree.contexts, "responses": len(scene.tree.path), "parameters": u.shape[1]}
    result["variance"] = _variance(scene, recipe, sim, u)
    result["bounds"] = {name: _mean(bound) for name, bound in bounds(scene, mode).items()}
    result |= _tokens(scene, recipe)
    result["intervals"] = {name: asdict(interval) for name, interval in intervals.items()}
    for name in _without_gradient(g, natural):
        result[name] = None
        result["intervals"].pop(name, None)
    result["replay"] = replay.rows(scene, mode)
    result["inert"] = inert(recipe, sim)
    result["notes"] = _notes(recipe, sim, result)
    check_finite(result, SATURATED)
    return result


def _without_gradient(g: Tensor, natural: Tensor) -> list[str]:
    """The comparisons that are not formed, since their target's gradient is 0: nothing is relative to that."""
    compared = {
        "gradient_error": g,
        "gradient_error_raw": g,
        "cosine": g,
        "gradient_error_natural": natural,
        "cosine_natural": natural,
    }
    return [name for name, target in compared.items() if not target.any()]


def inert(recipe: Recipe, sim: Sim) -> list[str]:
    """The parts of a recipe that cannot act in a measurement, one sentence each."""
    return agree.inert(recipe, sim, stale=sim.staleness > 0)


def _scene(recipe: Recipe, sim: Sim, members: int) -> Scene:
    theta_old = starting_weights(sim, torch.tensor([sim.seed]).expand(members))
    pair = engines(sim, torch.arange(members))
    mover = recipe if sim.direction == "recipe" else None
    *_, theta = path(sim, pair, theta_old, sim.staleness, mover)
    tree, rewards = grow(sim)
    return build(
        sim,
        tree,
        rewards,
        pair,
        theta_old,
        theta if sim.staleness else None,
        modes=[recipe.router_replay.mode],
    )


def summarise(
    draws: dict[str, Tensor], u: Tensor, g: Tensor, natural: Tensor
) -> tuple[dict[str, Any], dict[str, Interval]]:
    """Every scalar over the draws of the rollout engine; with several draws, each with its jackknife interval.

    Args:
        draws: `[M]` quantities that are averaged as they are.
        u, g, natural: `[M, P]` vectors that are averaged before they are compared.
    """

    def scalars(kept: Tensor) -> dict[str, Tensor]:
        means = {name: value[kept].mean() for name, value in draws.items()}
        error, bias = means["approximation_error"], means["replay_bias"]
        means |= {"value_error": error.abs(), "value_error_natural": (error + bias).abs()}
        return means | exact.fits(u[kept].mean(0), g[kept].mean(0), natural[kept].mean(0))

    count = len(u)
    everyone = torch.ones(count, dtype=torch.bool)
    whole = scalars(everyone)
    result = {name: float(value) for name, value in whole.items()}
    if count == 1:
        return result, {}
    left_out = [scalars(torch.arange(count) != i) for i in progress.steps("jackknife", range(count))]
    return result, {n: jackknife(value, torch.stack([one[n] for one in left_out])) for n, value in whole.items()}


def _values(scene: Scene, recipe: Recipe) -> dict[str, Tensor]:
    v = exact.values(scene, recipe.router_replay.mode)
    names = ("j_seq", "j_seq_natural", "j_mu", "j_mu_theta", "j_token", "replay_bias")
    return {name: getattr(v, name) for name in names} | {"approximation_error": v.error}


def _routes(scene: Scene, recipe: Recipe) -> dict[str, Tensor]:
    mode = recipe.router_replay.mode
    mu, old = scene.mu_old, scene.old["disabled"]
    share = token_share(scene)

    def per_token(x: Tensor) -> Tensor:
        return (share * x).sum(-1)

    flipped = flips(old.routes.contexts, mu.routes.contexts)
    p = scene.target[mode].logp.detach()
    return {
        "kl_mu_old": per_token(kl(mu.logp, old.logp.detach())),
        "kl_mu_old_replayed": per_token(kl(mu.logp, scene.old[mode].logp.detach())),
        "entropy": per_token(-(p.exp() * p).sum(-1)),
        "flip_rate": per_token(flipped.double().mean(-1)),
        "tokens_flipped": per_token(flipped.any(-1).double()),
        "jaccard": per_token(jaccard(old.routes.contexts, mu.routes.contexts).mean(-1)),
        "gate_margin": per_token(old.margin.mean(-1)),
        "mean_length": reach(mu.logp, scene.tree).sum(-1),
    }


def _flips_per_layer(scene: Scene) -> list[float]:
    flipped = flips(scene.old["disabled"].routes.contexts, scene.mu_old.routes.contexts).double()
    rates = (token_share(scene)[..., None] * flipped).sum(1)
    return [float(rate) for rate in rates.mean(0)]


def _tokens(scene: Scene, recipe: Recipe) -> dict[str, Any]:
    """Diagnostics and receipts: sums over the responses, divided at the end."""
    table = exact.advantage_table(scene, recipe)
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for part in exact.weighed_parts(scene, recipe):
        stats = token_stats(part, recipe)
        found = moments(stats)
        weights = exact.signed_weights(part, stats, recipe, table)
        for name, sign, chance, acted in zip(
            ("positive", "negative"), (1.0, -1.0), table.of(part), weights, strict=True
        ):
            counts = receipts(stats.with_advantage(sign * (chance > 0).double()), acted, recipe)
            found |= {f"{name}.{key}": pair for key, pair in counts.items()}
        for key, (above, below) in found.items():
            before = sums.get(key, (torch.zeros(()), torch.zeros(())))
            sums[key] = (before[0] + above, before[1] + below)
    told = {
        sign: {key.split(".")[1]: _mean(value) for key, value in means(sums).items() if key.startswith(f"{sign}.")}
        for sign in ("positive", "negative")
    }
    return {"diagnostics": {name: _mean(value) for name, value in finalise(sums).items()}, "receipts": told}


def _variance(scene: Scene, recipe: Recipe, sim: Sim, u: Tensor) -> float | None:
    """Variance of a minibatch's update: that of one group over the number of groups."""
    if u.shape[0] > 1 or len(scene.tree.path) > VARIANCE_RESPONSES:
        return None
    groups = recipe.schedule.prompts // recipe.schedule.minibatches
    return float(group_variance(scene, recipe, sim, u)) / groups


def _notes(recipe: Recipe, sim: Sim, result: dict[str, Any]) -> list[str]:
    notes = []
    if recipe.weight_scope == "batch":
        sampled = "" if sim.numerics.kind == "batch" else ", intervals the sampled minibatch"
        notes.append(f"weights read the whole batch: values and variance are the large-batch limit{sampled}")
    if sim.numerics.kind == "batch":
        notes.append(f"rollouts depend on their batch: values are means over {sim.draws} draws, not exact")
    if sim.training_numerics.kind not in ("exact", "noise"):
        notes.append("the target is low precision: its gradients are straight-through, not exact")
    if sim.members > 1:
        notes.append(f"sim.members = {sim.members} is read by train and sweep: the policy of sim.seed is measured")
    if recipe.has_critic:
        notes.append(
            "the critic is perfect, V = V^mu; a learned one's error enters where gae_lambda < 1 or a mask acts"
        )
    if result["variance"] is None:
        notes.append("variance is not formed for several draws or above 20,000 responses")
    return notes


def _mean(x: Tensor) -> float:
    return float(x.mean())
