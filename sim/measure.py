"""Everything `firstorder measure` reports about one recipe, exact unless it carries an interval."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstorder.core.diagnostics import finalise, moments
from firstorder.core.errors import ConfigError
from firstorder.core.recipe import Recipe, inert_parts
from firstorder.core.routing import flips, jaccard
from firstorder.core.surrogate import receipts, token_weights

from . import exact
from .bounds import bounds
from .config import Sim, check_replay
from .policy import initial_weights
from .sampled import jackknife, sampled_fit
from .scene import Scene, build, engines, grow, kl, token_stats
from .staleness import path
from .tree import check_size, count, reach
from .variance import group_variance

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
    """
    check_runs(recipe)
    check_replay(recipe, sim)
    members = sim.draws if sim.numerics.kind == "batch" else 1
    check_size(sim, members, available_memory())
    scene = _scene(recipe, sim, members)
    mode = recipe.router_replay.mode
    u, g = exact.update(scene, recipe), exact.gradient(scene, mode)
    natural = exact.gradient(scene, "disabled") if mode != "disabled" else g
    result = _values(scene, recipe) | _gradients(u, g, natural) | _routes(scene, recipe)
    result |= {"nodes": scene.tree.contexts, "responses": len(scene.tree.path), "parameters": u.shape[1]}
    result["variance"] = _variance(scene, recipe, sim, u)
    result["bounds"] = {name: _mean(bound) for name, bound in bounds(scene, mode).items()}
    result |= _tokens(scene, recipe)
    result["intervals"] = _intervals(scene, recipe, u, g)
    result["inert"] = inert_parts(recipe, stale=scene.stale, mismatch=sim.numerics.kind != "exact")
    result["notes"] = _notes(recipe, sim, result)
    return result


def check_runs(recipe: Recipe) -> None:
    """Refuse a recipe whose method does not fit the form.

    Raises:
        ConfigError: with the reason that its file gives.
    """
    if recipe.about.unsupported:
        raise ConfigError(f"recipe {recipe.about.name} cannot be run: {recipe.about.unsupported}")


def available_memory() -> int:
    """Bytes of memory that can be taken without swapping."""
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _scene(recipe: Recipe, sim: Sim, members: int) -> Scene:
    theta_old = initial_weights(sim, torch.tensor([sim.seed]).expand(members))
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


def _values(scene: Scene, recipe: Recipe) -> dict[str, Any]:
    v = exact.values(scene, recipe.router_replay.mode)
    error, bias = _mean(v.error), _mean(v.replay_bias)
    return {
        "j_seq": _mean(v.j_seq),
        "j_seq_natural": _mean(v.j_seq_natural),
        "j_mu": _mean(v.j_mu),
        "j_mu_theta": _mean(v.j_mu_theta),
        "j_token": _mean(v.j_token),
        "value_error": abs(error),
        "approximation_error": error,
        "replay_bias": bias,
        "value_error_natural": abs(error + bias),
    }


def _gradients(u: Tensor, g: Tensor, natural: Tensor) -> dict[str, Any]:
    own = exact.compare(u.mean(0, keepdim=True), g.mean(0, keepdim=True))
    other = exact.compare(u.mean(0, keepdim=True), natural.mean(0, keepdim=True))
    return {
        "gradient_error": float(own.error),
        "gradient_error_raw": float(own.raw),
        "update_scale": float(own.scale),
        "cosine": float(own.cosine),
        "gradient_error_natural": float(other.error),
        "update_scale_natural": float(other.scale),
        "cosine_natural": float(other.cosine),
        "gradient_norm": float(g.mean(0).norm()),
    }


def _routes(scene: Scene, recipe: Recipe) -> dict[str, Any]:
    mode = recipe.router_replay.mode
    mu, old, tree = scene.mu_old, scene.old["disabled"], scene.tree
    weight = reach(mu.logp, tree)
    tokens = weight.sum(-1)

    def per_token(x: Tensor) -> float:
        return _mean((weight * x).sum(-1) / tokens)

    flipped = flips(old.routes.contexts, mu.routes.contexts)
    p = scene.target[mode].logp.detach()
    return {
        "kl_mu_old": per_token(kl(mu.logp, old.logp.detach())),
        "kl_mu_old_replayed": per_token(kl(mu.logp, scene.old[mode].logp.detach())),
        "entropy": per_token(-(p.exp() * p).sum(-1)),
        "flip_rate": per_token(flipped.double().mean(-1)),
        "tokens_flipped": per_token(flipped.any(-1).double()),
        "flip_rate_per_layer": [per_token(flipped[..., i].double()) for i in range(flipped.shape[-1])],
        "jaccard": per_token(jaccard(old.routes.contexts, mu.routes.contexts).mean(-1)),
        "gate_margin": per_token(old.margin.mean(-1)),
        "mean_length": _mean(tokens),
    }


def _tokens(scene: Scene, recipe: Recipe) -> dict[str, Any]:
    """Diagnostics and receipts: sums over the responses, divided at the end."""
    table = exact.advantage_table(scene, recipe)
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for part in exact.weighed_parts(scene, recipe):
        stats = token_stats(part, recipe)
        found = moments(stats)
        for name, sign, chance in zip(("positive", "negative"), (1.0, -1.0), table.of(part), strict=True):
            signed = stats.with_advantage(sign * (chance > 0).double())
            counts = receipts(signed, token_weights(signed, recipe))
            found |= {f"{name}.{key}": pair for key, pair in counts.items()}
        for key, (above, below) in found.items():
            before = sums.get(key, (torch.zeros(()), torch.zeros(())))
            sums[key] = (before[0] + above, before[1] + below)
    means = {key: above / below for key, (above, below) in sums.items()}
    acted = {
        sign: {key.split(".")[1]: _mean(value) for key, value in means.items() if key.startswith(f"{sign}.")}
        for sign in ("positive", "negative")
    }
    found_means = {name: _mean(value) for name, value in finalise(means).items()}
    return {"diagnostics": found_means, "receipts": acted}


def _variance(scene: Scene, recipe: Recipe, sim: Sim, u: Tensor) -> float | None:
    """Variance of a minibatch's update: that of one group over the number of groups."""
    if u.shape[0] > 1 or len(scene.tree.path) > VARIANCE_RESPONSES:
        return None
    groups = recipe.schedule.prompts // recipe.schedule.minibatches
    return float(group_variance(scene, recipe, sim, u)) / groups


def _intervals(scene: Scene, recipe: Recipe, u: Tensor, g: Tensor) -> dict[str, Any]:
    if u.shape[0] > 1:
        n = len(u)
        whole = exact.compare(u.mean(0, keepdim=True), g.mean(0, keepdim=True))
        left = exact.compare((u.sum(0) - u) / (n - 1), (g.sum(0) - g) / (n - 1))
        return {"gradient_error": asdict(jackknife(whole.error[0], left.error))}
    if recipe.weight_scope == "batch":
        return {name: asdict(found) for name, found in sampled_fit(scene, recipe, g).items()}
    return {}


def _notes(recipe: Recipe, sim: Sim, result: dict[str, Any]) -> list[str]:
    notes = []
    if recipe.weight_scope == "batch":
        notes.append("weights read the whole batch: values are the large-batch limit, intervals the sampled minibatch")
    if sim.numerics.kind == "batch":
        notes.append(f"rollouts depend on their batch: values are means over {sim.draws} draws, not exact")
    if sim.training_numerics.kind not in ("exact", "noise"):
        notes.append("the target is low precision: its gradients are straight-through, not exact")
    if result["variance"] is None:
        notes.append("variance is not formed for several draws or above 20,000 responses")
    return notes


def _mean(x: Tensor) -> float:
    return float(x.mean())


def size(sim: Sim) -> int:
    """Contexts that a measurement enumerates."""
    return count(sim)
