"""Theorems: what the first-order form leaves out, exactly.

E is the expectation under μ_old of one response, ρ_t = π_θ(y_t)/μ_old(y_t) for any target π_θ, T the horizon.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from firstorder.sim.exact.measurement import update
from firstorder.sim.exact.objectives import direction, gradient, value, values
from firstorder.sim.exact.scene import MODES, Mode, Scene
from firstorder.sim.exact.staleness import path
from firstorder.sim.exact.world import gather
from firstorder.sim.trials.budget import Budget

from .claim import EXACT, Claim, Outcome, theorem
from .ensemble import Ensemble, ensemble, recipe

SCALE, STALENESS = 0.1, 2  # large enough for every term to matter
POLICIES = 16


@lru_cache(maxsize=1)
def stale_scene(budget: Budget, scale: float = SCALE, steps: int = STALENESS) -> tuple[Ensemble, Scene]:
    """A scene whose engines differ and whose target has moved: the general case of every identity."""
    group = ensemble(Budget(policies=min(budget.policies, POLICIES), draws=1, first_seed=budget.first_seed))
    *_, theta = path(group.sim, group.engines(scale), group.weights, steps)
    return group, group.scene(scale, MODES, theta=theta)


def ratios(scene: Scene, mode: Mode) -> Tensor:
    """ρ_t of a target on every response, 1 off the mask, `[M, B, T]`."""
    return (
        gather(scene.target[mode].logp.detach(), scene.responses) - gather(scene.mu_old.logp, scene.responses)
    ).exp()


def expansion_error(scene: Scene, mode: Mode) -> Tensor:
    """-E[R Σ_t (ρ_t - 1)(1 - Π_{j>t} ρ_j)], the error of the expansion by its identity, `[M]`."""
    rho = ratios(scene, mode)
    after = rho.flip(-1).cumprod(-1).flip(-1) / rho  # prod_{j>t} rho_j
    return -(scene.measure * scene.responses.rewards * ((rho - 1) * (1 - after)).sum(-1)).sum(-1)


def off(a: Tensor, b: Tensor) -> float:
    """Largest deviation of two arrays `[M, ...]` relative to the norm of the second, over members."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1)).max())


def _value_identity(budget: Budget) -> Outcome:
    _, scene = stale_scene(budget)
    deviations, leading = {}, {}
    for mode in MODES:
        rho, weighted = ratios(scene, mode), scene.measure * scene.responses.rewards
        right = expansion_error(scene, mode)
        deviations[mode] = off(right[:, None], values(scene, mode).error[:, None])
        delta = rho - 1
        pairs = 0.5 * (delta.sum(-1).square() - delta.square().sum(-1))
        leading[mode] = float(((weighted * pairs).sum(-1) / right).median())
    return theorem(deviations, leading_term_over_error=leading)


def _sequence_gradient(budget: Budget) -> Outcome:
    _, scene = stale_scene(budget)
    deviations = {}
    for mode in MODES:
        objective = value(scene.target[mode].logp, scene.world).sum()
        leaves = [w for w in scene.weights.values() if w.requires_grad]
        grads = torch.autograd.grad(objective, leaves, retain_graph=True)
        by_autograd = torch.cat([g.flatten(1) for g in grads], dim=1)
        product = ratios(scene, mode).prod(-1, keepdim=True)
        weight = (scene.measure * scene.responses.rewards)[..., None] * product
        deviations[mode] = off(direction(scene, mode, weight.expand(-1, -1, scene.world.horizon)), by_autograd)
    return theorem(deviations)


def _gradient_gap(budget: Budget) -> Outcome:
    _, scene = stale_scene(budget)
    deviations, size = {}, {}
    for mode in MODES:
        rho, weighted = ratios(scene, mode), (scene.measure * scene.responses.rewards)[..., None]
        g = gradient(scene, mode)
        token = direction(scene, mode, weighted * rho)
        gap = direction(scene, mode, weighted * rho * (rho.prod(-1, keepdim=True) / rho - 1))
        deviations[mode] = off(token + gap, g)
        size[mode] = float((gap.norm(dim=-1) / g.norm(dim=-1)).mean())
    return theorem(deviations, gap_over_gradient=size)


def _prefix_and_future(budget: Budget) -> Outcome:
    """∇J_seq with the prefix ratio and Q^π; ∇J_token with neither: the two halves of the gap."""
    _, scene = stale_scene(budget)
    deviations, halves = {}, {}
    for mode in MODES:
        rho, weighted = ratios(scene, mode), (scene.measure * scene.responses.rewards)[..., None]
        prefix = rho.cumprod(-1)
        future = rho.prod(-1, keepdim=True) / prefix  # prod_{s>t}: averages R into Q^pi
        g = gradient(scene, mode)
        token = direction(scene, mode, weighted * rho)
        state = direction(scene, mode, weighted * (prefix - rho) * future)
        action = direction(scene, mode, weighted * rho * (future - 1))
        deviations[mode] = off(token + state + action, g)
        norm = g.norm(dim=-1)
        halves[mode] = {
            "missing_prefix_ratio": float((state.norm(dim=-1) / norm).mean()),
            "q_mu_for_q_pi": float((action.norm(dim=-1) / norm).mean()),
        }
    return theorem(deviations, halves_over_gradient=halves)


def _baseline(budget: Budget) -> Outcome:
    """A baseline b(x) adds E[Σ_t ρ_t b ∇log π] = 0 to ∇J_token; a mask, a truncation or 1/|y| breaks that."""
    _, scene = stale_scene(budget)
    g = gradient(scene, "disabled")
    rho, share = ratios(scene, "disabled"), scene.measure[..., None]
    added = {
        "token_is": rho,
        "clip_mask": rho * ((rho < 1.27) & (rho > 0.8)),
        "truncation": rho.clamp(max=1.1),
        "length_norm": rho / scene.responses.lengths[:, None],
        "no_is": torch.ones_like(rho),
    }
    norms = {n: (direction(scene, "disabled", share * w).norm(dim=-1) / g.norm(dim=-1)) for n, w in added.items()}
    outcome = theorem({"token_is": float(norms["token_is"].max())})
    broken = {name: float(norm.mean()) for name, norm in norms.items() if name != "token_is"}
    return replace(outcome, measured={**outcome.measured, "added_by_b_equal_1": broken})


def _group_mean(budget: Budget) -> Outcome:
    """The group mean's expected eq. (4) is (1 - 1/G) of the one without a baseline."""
    _, scene = stale_scene(budget)
    plain = recipe("minirl-no-clip")
    size = plain.schedule.group_size
    bare = plain.model_copy(update={"advantage": plain.advantage.model_copy(update={"baseline": "none"})})
    deviation = off(update(scene, plain), (1 - 1 / size) * update(scene, bare))
    return theorem({"relative": deviation}, group_size=size, threshold=EXACT)


CLAIMS = [
    Claim(
        id="value-identity",
        statement="J(pi) - J(mu) - E[R sum(rho_t - 1)] = -E[R sum_t (rho_t - 1)(1 - prod_{j>t} rho_j)]",
        source="arXiv 2512.01374 eqs. (1), (3); derived",
        kind="theorem",
        rule=f"relative deviation at most {EXACT:g} for every policy and replay mode",
        check=_value_identity,
    ),
    Claim(
        id="sequence-gradient",
        statement="the gradient of J_seq is E[prod(rho) R sum_t grad log pi(y_t)]",
        source="arXiv 2512.01374 eq. (2)",
        kind="theorem",
        rule=f"relative deviation from automatic differentiation of J at most {EXACT:g}",
        check=_sequence_gradient,
    ),
    Claim(
        id="gradient-gap",
        statement="grad J_seq - grad J_token = E[R sum_t rho_t (prod_{s!=t} rho_s - 1) grad log pi(y_t)]",
        source="arXiv 2512.01374 eqs. (2), (4); derived",
        kind="theorem",
        rule=f"relative deviation at most {EXACT:g}",
        check=_gradient_gap,
    ),
    Claim(
        id="two-errors",
        statement="the gap is a missing prefix ratio (states of mu) plus Q^mu in place of Q^pi (futures of mu)",
        source="arXiv 2512.01374 eqs. (2), (4); derived",
        kind="theorem",
        rule=f"the two halves add up to the gap within {EXACT:g}",
        check=_prefix_and_future,
    ),
    Claim(
        id="baseline",
        statement="a baseline b(x) leaves grad J_token unbiased at any staleness",
        source="arXiv 2512.01374 eq. (4); derived",
        kind="theorem",
        rule=f"norm added by b = 1 at most {EXACT:g} of the gradient; what masks, truncation, 1/|y| add is reported",
        check=_baseline,
    ),
    Claim(
        id="group-mean",
        statement="a group mean that includes the response itself scales the expected update by exactly 1 - 1/G",
        source="arXiv 2512.01374 eq. (7) advantage; derived",
        kind="theorem",
        rule=f"relative deviation at most {EXACT:g}",
        check=_group_mean,
    ),
]
