"""Everything `firstorder measure` reports about one recipe, exact unless it carries an interval."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from firstorder.core import memory, progress
from firstorder.core.finite import check_finite
from firstorder.core.method.recipe import Recipe, check_runs
from firstorder.core.routing import flips, jaccard
from firstorder.core.threads import sized
from firstorder.sim.checks import check_replay, truncation
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim
from firstorder.sim.model.chunks import numbers

from . import agree, objectives, replay, terms
from .bounds import bounds
from .bounds_replay import replay_bounds, sampled_total_variation, whole
from .compare import reported
from .edges import entropy, kl
from .fit import fits
from .masking import masking, note
from .measurement import Measurement
from .memory import check_memory
from .observed import observed
from .sampled import Interval, block_fits, jackknife, sampled_fits
from .scene import Mode, Scene, build, engines, grow
from .size import check_size, count
from .staleness import path

SATURATED = (
    "the policy is saturated or has overflowed; lower sim.sharpness, sim.lr, sim.staleness or sim.coldstart_lr, or "
    "raise sim.temperature"
)


@sized(lambda recipe, sim: numbers(count(sim), sim.width))
def measure(recipe: Recipe, sim: Sim) -> dict[str, Any]:
    """The exact error, bias and variance of a recipe in the simulator.

    Args:
        recipe: the method.
        sim: policy, engines and staleness.

    Returns:
        Plain numbers under the names that `docs/measure.md` defines; `intervals` holds those that were sampled.

    Raises:
        ConfigError: the recipe cannot be run, or contradicts the simulator.
        SizeError: the world does not fit in memory.
        NotFiniteError: a result is NaN or infinite.
    """
    check_runs(recipe)
    check_replay(recipe, sim)
    members = sim.draws if sim.numerics.kind == "batch" else 1
    held = members * sim.passes
    check_memory(sim, held, memory.available())
    check_size(sim, held, memory.available())
    measurement = Measurement(scene=_scene(recipe, sim, members), recipe=recipe)
    scene, mode = measurement.scene, measurement.mode
    u, targets = measurement.update, (measurement.gradient, measurement.natural_gradient)
    result, intervals = summarise(_values(measurement) | _engines(measurement), u, *targets)
    if members == 1 and measurement.sampled:
        intervals = block_fits(measurement)
    elif members == 1 and recipe.scope == "batch" and scene.exhaustive:
        intervals = sampled_fits(measurement)
    result["expansion"] = [float(term) for term in objectives.terms(scene, mode).mean(0)]
    result["flip_rate_per_layer"] = _flips_per_layer(scene)
    result |= {"nodes": scene.world.contexts, "responses": len(scene.responses), "parameters": u.shape[1]}
    accuracies, of_accuracy = reported(measurement)
    result |= accuracies
    of_bounds, sampled_bounds = _bounds(scene, mode)
    result |= of_bounds
    tokens, of_tokens = observed(measurement)
    result |= tokens
    intervals |= of_tokens | of_accuracy | sampled_bounds
    result["intervals"] = {name: asdict(interval) for name, interval in intervals.items()}
    for name in _without_gradient(*targets):
        result[name] = None
        result["intervals"].pop(name, None)
    result["replay"] = replay.rows(scene, mode)
    result["mask"] = masking(measurement)
    result["terms"] = terms.report(measurement)
    result["inert"] = inert(recipe, sim)
    result["notes"] = _notes(recipe, sim, result) + [text for text in [note(scene, truncation(sim))] if text]
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
    return agree.inert(recipe, sim, stale=sim.staleness > 0, moved=sim.staleness > 0)


def _scene(recipe: Recipe, sim: Sim, members: int) -> Scene:
    theta_old = starting_weights(sim, torch.tensor([sim.seed]).expand(members))
    arithmetics = engines(sim, torch.arange(members))
    mover = recipe if sim.direction == "recipe" else None
    *_, theta = path(sim, arithmetics, theta_old, sim.staleness, mover)
    return build(
        sim,
        grow(sim),
        arithmetics,
        theta_old,
        theta if sim.staleness else None,
        modes=[str(recipe.router_replay)],
    )


def summarise(
    draws: dict[str, Tensor], u: Tensor, g: Tensor, natural: Tensor
) -> tuple[dict[str, Any], dict[str, Interval]]:
    """Every scalar over the draws of the rollout engine; with several draws, each with its jackknife interval.

    Args:
        draws: `[M]` quantities that are averaged as they are.
        u, g, natural: `[M, P]` vectors that are averaged before they are compared.
    """

    def scalars(used: Tensor) -> dict[str, Tensor]:
        means = {name: value[used].mean() for name, value in draws.items()}
        error, bias = means["approximation_error"], means["replay_bias"]
        means |= {"value_error": error.abs(), "value_error_natural": (error + bias).abs()}
        return means | fits(u[used].mean(0), g[used].mean(0), natural[used].mean(0))

    count = len(u)
    everyone = torch.ones(count, dtype=torch.bool)
    whole = scalars(everyone)
    result = {name: float(value) for name, value in whole.items()}
    if count == 1:
        return result, {}
    left_out = [scalars(torch.arange(count) != i) for i in progress.steps("jackknife", range(count))]
    return result, {n: jackknife(value, torch.stack([one[n] for one in left_out])) for n, value in whole.items()}


def _values(measurement: Measurement) -> dict[str, Tensor]:
    values = vars(objectives.values(measurement.scene, measurement.mode)).copy()
    error = values.pop("error")
    return values | {"approximation_error": error, "log_chi2_seq": measurement.log_chi2}


def _engines(measurement: Measurement) -> dict[str, Tensor]:
    """How far the engines are apart, and the entropy: means over the response tokens that μ_old draws."""
    scene = measurement.scene
    old = scene.old["disabled"]
    mu_logp, mu_routes = scene.calls
    pi_routes = old.routes.contexts[:, None]

    def per_token(x: Tensor) -> Tensor:
        return (scene.share * x).sum(-1)

    def apart(pi: Tensor) -> Tensor:
        return per_token(kl(mu_logp, pi[:, None]).mean(1))

    flipped = flips(pi_routes, mu_routes)
    return {
        "kl_mu_old": apart(old.logp),
        "kl_mu_old_replayed": apart(scene.old[measurement.mode].logp),
        "entropy": per_token(entropy(measurement.target.logp.detach())),
        "flip_rate": per_token(flipped.double().mean((1, -1))),
        "tokens_flipped": per_token(flipped.any(-1).double().mean(1)),
        "jaccard": per_token(jaccard(pi_routes, mu_routes).mean((1, -1))),
        "gate_margin": per_token(old.margin.mean(-1)),
        "mean_length": scene.reached.sum(-1),
    }


def _flips_per_layer(scene: Scene) -> list[float]:
    flipped = flips(scene.old["disabled"].routes.contexts[:, None], scene.calls[1]).double().mean(1)
    rates = (scene.share[..., None] * flipped).sum(1)
    return [float(rate) for rate in rates.mean(0)]


def _bounds(scene: Scene, mode: Mode) -> tuple[dict[str, dict[str, float]], dict[str, Interval]]:
    """Bounds on the error of the expansion and on the replay bias, and the interval of what is sampled of them."""
    of_error, of_replay = bounds(scene, mode), replay_bounds(scene, mode)
    found = {"bounds": _averaged(of_error), "replay_bounds": _averaged(of_replay)}
    if not of_replay:
        return found, {}
    found["replay_bounds"]["whole"] = float(whole(of_error, of_replay).mean())
    if scene.world.exhaustive:
        return found, {}
    drawn = sampled_total_variation(scene, mode)
    found["replay_bounds"]["total_variation"] = drawn.estimate
    return found, {"replay_bounds.total_variation": drawn}


def _notes(recipe: Recipe, sim: Sim, result: dict[str, Any]) -> list[str]:
    notes = []
    drawn = sim.numerics.kind == "batch" or sim.world == "graph" or sim.random_readings
    sampled = "" if drawn else ", intervals the sampled minibatch"
    if recipe.weight_scope == "batch":
        notes.append(f"weights read the whole batch: values and variance are the large-batch limit{sampled}")
    if recipe.advantage.scale != "none":
        notes.append(
            f"advantages are scaled by the whole batch: values are the large-batch limit{sampled}; the variance takes "
            "the scale to be that of the limit in every batch"
        )
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
        notes.append(
            "variance and mse are not formed for several draws, above 20,000 responses of a tree, of fewer than 3 "
            "sampled responses a prompt, where a gradient is 0, beyond the range of float64, or of a recipe with terms"
        )
    if recipe.terms.active:
        notes.append(
            "the terms are a part of u and not of g, so that gradient_error counts them as error"
            + ("; the reference is pi_old" if recipe.terms.reference_kl else "")
        )
    if sim.numerics.drawn:
        notes.append(
            f"mu draws one of sim.draws = {sim.draws} noises at every token: it is their mean policy that is sampled, "
            "and expectations over them are exact"
        )
    if sim.reading_noise:
        notes.append(
            f"readings of mu are off by sim.reading_noise = {sim.reading_noise:g} nats, one of sim.draws = {sim.draws} "
            "equally likely errors, and those above 0 are 0; expectations over them are exact"
        )
    if sim.world == "graph" or sim.random_readings:
        notes.append(
            f"what has an interval is a mean over {result['responses']:,} responses drawn from mu; all else is exact"
        )
    return notes


def _averaged(values: dict[str, Tensor]) -> dict[str, float]:
    """Means over members."""
    return {name: float(value.mean()) for name, value in values.items()}
