"""Empirical: what length normalisation, a missing correction, masks and truncation cost in a single step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from firstorder.core.method.recipe import Recipe
from firstorder.core.method.surrogate import token_weights
from firstorder.sim.config import Sim
from firstorder.sim.exact.fit import compare
from firstorder.sim.exact.measurement import token_stats, update
from firstorder.sim.exact.objectives import gradient
from firstorder.sim.exact.scene import Scene
from firstorder.sim.exact.staleness import path
from firstorder.sim.trials.budget import Budget, Verdict
from firstorder.sim.trials.statistics import Estimate, mean, ratio_of_means, slope

from .claim import Claim, Outcome
from .ensemble import ensemble, recipe

SCALES = (0.1, 0.0316, 0.01, 0.00316, 0.001)
FLOOR = 0.05
ALPHAS = (0.0, 0.25, 0.5, 1.0)
MASK_STEPS, MASK_SCALE = (1, 3), 0.05


def _single(budget: Budget) -> Budget:
    return Budget(policies=budget.policies, draws=1, first_seed=budget.first_seed)


def _errors(scene: Scene, *methods: Recipe) -> list[Tensor]:
    """Gradient error of each recipe, `[M]`, on the target that they share."""
    own = gradient(scene, methods[0].router_replay.mode)
    return [compare(update(scene, method), own).error for method in methods]


def _length_norm(budget: Budget) -> Outcome:
    """R3 removes the flips, so that whatever is left at the smallest perturbation is the normalisation's own."""
    group = ensemble(_single(budget))
    scene = group.scene(SCALES[-1], ["R3"])
    base = recipe("minirl-r3-length-norm")
    rules = [base.aggregation.model_copy(update={"alpha": alpha}) for alpha in ALPHAS]
    errors = _errors(scene, *(base.model_copy(update={"aggregation": rule}) for rule in rules))
    by_alpha = {alpha: mean(error) for alpha, error in zip(ALPHAS, errors, strict=True)}
    larger = mean(_errors(group.scene(SCALES[0], ["R3"]), base)[0])
    floor = by_alpha[1.0]
    verdict: Verdict = "reproduced" if floor.low > FLOOR else "not reproduced" if floor.high < FLOOR else "inconclusive"
    measured = {
        "gradient_error_by_alpha_at_0.001": {str(a): e.json() for a, e in by_alpha.items()},
        "gradient_error_at_0.1": larger.json(),
    }
    return Outcome(verdict=verdict, headline=f"gradient error {floor} at scale 0.001", measured=measured)


def _without_is(budget: Budget) -> Outcome:
    """The order of the error without the train-infer ratio, and how much larger it is, with and without replay."""
    group = ensemble(_single(budget))
    measured: dict[str, Any] = {}
    orders: dict[str, Estimate] = {}
    largest = 0.0
    for with_is, without in (("minirl-r3", "minirl-r3-no-is"), ("minirl", "minirl-no-is")):
        errors, times = [], {}
        for scale in SCALES:
            scene = group.scene(scale, [recipe(with_is).router_replay.mode])
            kept, dropped = _errors(scene, recipe(with_is), recipe(without))
            errors.append(dropped)
            times[str(scale)] = ratio_of_means(dropped, kept)
        largest = max(largest, *(t.value for t in times.values()))
        orders[without] = slope(SCALES, errors, [torch.ones_like(e) for e in errors])
        measured[without] = {
            "order": orders[without].json(),
            "error_over_error_with_is": {key: t.json() for key, t in times.items()},
        }
    order = orders["minirl-r3-no-is"]
    verdict: Verdict = "reproduced" if order.high < 0.5 else "not reproduced" if order.low > 0.5 else "inconclusive"
    return Outcome(
        verdict=verdict, headline=f"order {order}, error x {largest:.2g} at most of that with IS", measured=measured
    )


def _cost(budget: Budget, plain: str, changed: list[Recipe], steps: tuple[int, ...], scale: float) -> Outcome:
    """Gradient error that a part adds over the same recipe without it, per staleness."""
    group = ensemble(_single(budget), Sim(lr=0.1))
    measured: dict[str, Any] = {}
    added: list[Estimate] = []
    for step, theta in enumerate(path(group.sim, group.engines(scale), group.weights, steps[-1])):
        if step not in steps:
            continue
        scene = group.scene(scale, ["disabled"], theta=theta if step else None)
        base, *errors = _errors(scene, recipe(plain), *changed)
        for method, error in zip(changed, errors, strict=True):
            cost = mean(error - base)
            added.append(cost)
            measured[f"{method.about.name}_staleness_{step}"] = {
                "added_gradient_error": cost.json(),
                "share_of_tokens_acted_on": _acted(scene, method),
            }
        measured[f"{plain}_staleness_{step}"] = {"gradient_error": mean(base).json()}
    verdict: Verdict = "inconclusive"
    if all(a.low > 0 for a in added):
        verdict = "reproduced"
    elif all(a.high <= 0 for a in added):
        verdict = "not reproduced"
    largest = max(added, key=lambda a: a.value)
    return Outcome(verdict=verdict, headline=f"adds up to {largest} gradient error", measured=measured)


def _acted(scene: Scene, method: Recipe) -> float:
    """μ-weighted share of response tokens whose clip or correction is not the ratio itself, for A > 0."""
    stats = token_stats(scene, method)
    parts = token_weights(stats, method)
    bare = token_weights(stats, recipe("minirl-no-clip")).clipped
    hit = ((parts.clipped * parts.correction * parts.kept - bare).abs() > 1e-12) & stats.mask
    weight = stats.weights
    return float(((weight * hit.sum(-1)).sum(-1) / (weight * stats.mask.sum(-1)).sum(-1)).mean())


def _masks(budget: Budget) -> Outcome:
    return _cost(budget, "minirl-no-clip", [recipe("minirl")], MASK_STEPS, MASK_SCALE)


def _truncation(budget: Budget) -> Outcome:
    tis = recipe("minirl-tis")
    unclipped = tis.model_copy(update={"clip": recipe("minirl-no-clip").clip})
    bounds = [
        unclipped.model_copy(
            update={
                "correction": unclipped.correction.model_copy(update={"high": high}),
                "about": unclipped.about.model_copy(update={"name": f"truncated_at_{high:g}"}),
            }
        )
        for high in (5.0, 2.0)
    ]
    return _cost(budget, "minirl-no-clip", bounds, (0, 3), 0.1)


CLAIMS = [
    Claim(
        id="length-norm-floor",
        statement="length normalisation has a gradient error that does not vanish with the perturbation",
        source="arXiv 2512.01374 sec. 5.2 (length normalisation invalidates the first-order approximation)",
        kind="empirical",
        rule=f"95% interval of the best-scaled error at scale 0.001 under R3: above {FLOOR} / below / straddling",
        check=_length_norm,
    ),
    Claim(
        id="no-is-one-step",
        statement="dropping the train-infer IS leaves a single step with a gradient error that does not vanish",
        source="arXiv 2512.01374 sec. 5.2 (without IS the first-order approximation is invalid)",
        kind="empirical",
        rule="95% interval of the slope of the error under R3: below 0.5 (a floor) / above 0.5 / straddling",
        check=_without_is,
    ),
    Claim(
        id="mask-cost",
        statement="the ratio mask M_t adds gradient error once the target is stale",
        source="arXiv 2512.01374 eq. (7)",
        kind="empirical",
        rule="95% interval of the added error at staleness 1 and 3: all above 0 / all at most 0 / else",
        check=_masks,
    ),
    Claim(
        id="truncation-cost",
        statement="truncating the ratio (TIS at 5 and at 2) adds gradient error",
        source="arXiv 2512.01374 sec. 5.1",
        kind="empirical",
        rule="95% interval of the added error at staleness 0 and 3, scale 0.1: all above 0 / all at most 0 / else",
        check=_truncation,
    ),
]
