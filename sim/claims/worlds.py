"""Theorems of long responses: recursion over contexts that merge is enumeration, and what it says of any length."""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.sim.config import Sim
from firstorder.sim.exact import objectives
from firstorder.sim.exact.measurement import update
from firstorder.sim.exact.scene import MODES, Scene
from firstorder.sim.exact.staleness import path
from firstorder.sim.trials.budget import Budget

from .claim import EXACT, Claim, Outcome, theorem
from .ensemble import ensemble, recipe
from .identities import SCALE, STALENESS, off

POLICIES = 4
SHORT = Sim(task="chain", prompts=2, positions=3, vocab=5, horizon=4, recovery=1)
LONG = Sim(
    world="graph",
    task="chain",
    prompts=4,
    positions=4,
    vocab=8,
    right=2,
    horizon=512,
    coldstart="calibrated",
    lr=0.001,
)
WEIGHED = ("minirl", "minirl-r3", "grpo", "dapo", "m2po", "nfpo", "trm")


def _scene(budget: Budget, sim: Sim) -> Scene:
    """As `identities.stale_scene`, of a few policies in another world."""
    group = ensemble(Budget(policies=min(budget.policies, POLICIES), draws=1, first_seed=budget.first_seed), sim)
    *_, theta = path(sim, group.engines(SCALE), group.weights, STALENESS)
    return group.scene(SCALE, MODES, theta=theta)


def _worlds(budget: Budget) -> Outcome:
    tree, graph = (_scene(budget, SHORT.model_copy(update={"world": world})) for world in ("tree", "graph"))
    deviations = {}
    for mode in MODES:
        for name in ("j_seq", "error", "j_token"):
            pair = (getattr(objectives.values(scene, mode), name)[:, None] for scene in (graph, tree))
            deviations[f"{mode} {name}"] = off(*pair)
        deviations[f"{mode} gradient"] = off(*(objectives.gradient(scene, mode) for scene in (graph, tree)))
        deviations[f"{mode} expansion"] = off(*(objectives.terms(scene, mode) for scene in (graph, tree)))
    for name in WEIGHED:
        deviations[name] = off(*(update(scene, recipe(name)) for scene in (graph, tree)))
    return theorem(deviations, horizon=SHORT.horizon, threshold=EXACT)


def _difference(budget: Budget) -> Outcome:
    scene = _scene(budget, LONG)
    world, mu = scene.world, scene.mu_old.logp.exp()
    deviations, terms = {}, {}
    for mode in MODES:
        pi = scene.target[mode].logp.detach().exp()
        gap = objectives.value(pi.log(), world) - objectives.value(mu.log(), world)
        worth = world.levels[:, None].expand(len(mu), 1, -1, world.prompts)
        for name, before, after in (("states of pi", pi, mu), ("states of mu", mu, pi)):
            step = ((pi - mu) * world.through(before, after, worth)[:, 0]).sum((-2, -1))
            deviations[f"{mode} {name}"] = off(step[:, None], gap[:, None])
        terms[mode] = _shares(objectives.terms(scene, mode), gap)
    return theorem(deviations, horizon=LONG.horizon, terms_over_difference=terms, threshold=EXACT)


def _shares(terms: Tensor, gap: Tensor) -> list[float]:
    """e_1 + ... + e_k over J(π) - J(μ), the median over members for each k."""
    return [float(x) for x in torch.median(terms.cumsum(-1) / gap[:, None], dim=0).values]


CLAIMS = [
    Claim(
        id="worlds",
        statement="summing over contexts that merge, by recursion over t, is summing over all responses",
        source="this project; dynamic programming",
        kind="theorem",
        rule=f"values, gradients, expansion and expected updates of both worlds within {EXACT:g} at the horizon that "
        "enumeration reaches",
        check=_worlds,
    ),
    Claim(
        id="difference",
        statement="J(pi) - J(mu) = sum_t E[sum_a (pi - mu)(a|c_t) Q_t(c_t, a)], c_t by pi and Q of mu, or the reverse",
        source="Kakade and Langford 2002, lemma 6.1; arXiv 2512.01374 eqs. (1), (3)",
        kind="theorem",
        rule=f"relative deviation at most {EXACT:g} over responses of {LONG.horizon} tokens, for every replay mode",
        check=_difference,
    ),
]
