"""Runs that decline, and the same runs with one suspect taken out; every setting was chosen on seeds below 1000."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Numerics, Sim
from firstorder.sim.exact.edges import kl
from firstorder.sim.exact.scene import build, engines, grow
from firstorder.sim.trials.long import BASE, LongCondition

CUTS = 24  # of the bisection of a noise, whose range of 1e-4 to 10 is then known to a millionth
OF_METHOD = ("reading_noise", "draws", "update_contexts", "min_p")
"""Keys of `[sim]` that are a part of a method or of its data, and not of the world that it is compared in."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A suspect taken out of a run.

    Args:
        suspect: of `causes.CLAIMS`.
        how: what was changed.
        condition: the run without it.
        recipe: the same.
        flipless: whether its engines differ by noise on the head alone, as large a KL apart as before.
    """

    suspect: str
    how: str
    condition: LongCondition
    recipe: str
    flipless: bool = False


@dataclass(frozen=True, kw_only=True)
class Decline:
    """A run that declines, and what can be taken out of it."""

    condition: LongCondition
    recipe: str
    removals: tuple[Removal, ...]


def keyed(condition: LongCondition, **keys: Any) -> LongCondition:
    """The condition with other keys of `[sim]`."""
    return condition.but(sim=tuple((dict(condition.sim) | keys).items()))


def reference(condition: LongCondition) -> LongCondition:
    """Where the sound reference is trained: the same world, start and number of updates."""
    world = tuple((key, value) for key, value in condition.sim if key not in OF_METHOD)
    return condition.but(sampled=False, minibatches=1, lr=BASE.lr, sim=world, recipe=())


def scaled(condition: LongCondition) -> LongCondition:
    """The condition with every step scaled by the effective sample size."""
    return condition.but(recipe=(*condition.recipe, ("optimizer.step_scale", "ess")))


def _half(condition: LongCondition, recipe: str) -> Removal:
    return Removal(suspect="step", how="half the step", condition=condition.but(lr=condition.lr / 2), recipe=recipe)


def _on_chain(condition: LongCondition, recipe: str) -> Removal:
    left = keyed(condition, update_contexts="on_chain")
    return Removal(suspect="contexts", how="not learnt from", condition=left, recipe=recipe)


def _recipe(suspect: str, how: str, condition: LongCondition, recipe: str) -> Removal:
    return Removal(suspect=suspect, how=how, condition=condition, recipe=recipe)


def _biased(condition: LongCondition, recipe: str = "minirl-no-is") -> Decline:
    removals = (
        _recipe("bias", "token ratio", condition, "minirl"),
        _recipe("bias", "sequence ratio", condition, "reinforce-is"),
        _half(condition, recipe),
        _recipe("variance", "step by ESS", scaled(condition), recipe),
        _recipe("tail", "pruned at 1e-4", keyed(condition, min_p=1e-4), recipe),
        _recipe("boundaries", "R3", condition, "minirl-r3-no-is"),
        Removal(suspect="boundaries", how="no flips", condition=condition, recipe=recipe, flipless=True),
        _on_chain(condition, recipe),
        _recipe("contexts", "share no feature", keyed(condition, shared=0.0), recipe),
        _recipe("contexts", "recovery", keyed(condition, recovery=1), recipe),
    )
    return Decline(condition=condition, recipe=recipe, removals=removals)


def _sampled(condition: LongCondition, recipe: str, *more: Removal) -> Decline:
    removals = (
        *more,
        _recipe("variance", "exact update", condition.but(sampled=False), recipe),
        _recipe("variance", "step by ESS", scaled(condition), recipe),
        _half(condition, recipe),
        _recipe("boundaries", "R3", condition, recipe.replace("minirl", "minirl-r3")),
    )
    return Decline(condition=condition, recipe=recipe, removals=removals)


def _long(condition: LongCondition, recipe: str = "minirl-no-is") -> Decline:
    removals = (
        _recipe("bias", "token ratio", condition, "minirl"),
        _half(condition, recipe),
        _recipe("boundaries", "R3", condition, "minirl-r3-no-is"),
        _on_chain(condition, recipe),
    )
    return Decline(condition=condition, recipe=recipe, removals=removals)


def _large(condition: LongCondition, recipe: str = "minirl") -> Decline:
    removals = (
        _recipe("bias", "sequence ratio", condition, "reinforce-is"),
        _half(condition, recipe),
        _recipe("boundaries", "R3", condition, "minirl-r3"),
        _recipe("anchor", "clip around μ", condition, "dppo-tv"),
        _on_chain(condition, recipe),
    )
    return Decline(condition=condition, recipe=recipe, removals=removals)


def _stale(condition: LongCondition, recipe: str = "minirl") -> Decline:
    removals = (
        _recipe("staleness", "N = 1", condition.but(minibatches=1), recipe),
        _half(condition, recipe),
        _recipe("clip", "none", condition, "minirl-no-clip"),
        _recipe("anchor", "clip around μ", condition, "dppo-tv"),
        _recipe("boundaries", "R3", condition, "minirl-r3"),
        _on_chain(condition, recipe),
    )
    return Decline(condition=condition, recipe=recipe, removals=removals)


def _misread(condition: LongCondition, recipe: str = "minirl-tis") -> Decline:
    error = dict(condition.sim)["reading_noise"]
    removals = (
        _recipe("readings", "the mean of 8", keyed(condition, reading_noise=error / math.sqrt(8)), recipe),
        _recipe("bias", "no truncation", condition, "minirl"),
        _half(condition, recipe),
        _on_chain(condition, recipe),
    )
    return Decline(condition=condition, recipe=recipe, removals=removals)


SHORT = BASE.but(problems=8, updates=64)
DECLINES: Mapping[str, Decline] = {
    "no IS, exact": _biased(SHORT),
    "no IS, 2,048 tokens": _biased(SHORT.but(horizon=2048)),
    "no IS, sampled": _sampled(
        SHORT.but(sampled=True),
        "minirl-no-is",
        _recipe("bias", "token ratio", SHORT.but(sampled=True), "minirl"),
    ),
    "IS, sampled": _sampled(SHORT.but(sampled=True), "minirl"),
    "no IS, close engines": _long(SHORT.but(horizon=2048, noise=0.02)),
    "large step": _large(SHORT.but(lr=0.02)),
    "stale": _stale(SHORT.but(minibatches=8, lr=0.02, updates=96)),
    "misread": _misread(keyed(SHORT, reading_noise=1.0, draws=8)),
}
FIRST_LOOK: Mapping[str, Decline] = {"no IS, exact": _long(SHORT.but(updates=24))}


def flipless(condition: LongCondition, seeds: range) -> LongCondition:
    """The condition with noise on the head alone, as large a mean KL(μ ‖ π) a token at the start, and no flip.

    The KL grows with the noise, which is bisected on a logarithmic scale.
    """
    sim, which = condition.world(seeds), torch.arange(seeds.start, seeds.stop)
    wanted = _divergence(sim, which)
    low, high = math.log(1e-4), math.log(10.0)
    for _ in range(CUTS):
        middle = (low + high) / 2
        far = _divergence(sim.model_copy(update={"numerics": _on_head(math.exp(middle))}), which) > wanted
        low, high = (low, middle) if far else (middle, high)
    return keyed(condition, numerics=_on_head(float(f"{math.exp(low):.4g}")))


def _on_head(scale: float) -> Numerics:
    return Numerics(kind="noise", router_scale=0.0, expert_scale=0.0, head_scale=scale)


def _divergence(sim: Sim, seeds: Tensor) -> float:
    """KL(μ ‖ π) a response token at the start, the mean over policies, nats."""
    with torch.no_grad():
        scene = build(sim, grow(sim), engines(sim, seeds), starting_weights(sim, seeds), modes=["disabled"])
    divergence = kl(scene.mu_old.logp, scene.old["disabled"].logp)
    return float((scene.share * divergence).sum(-1).mean())
