"""Empirical: the order of the remainder under R3, and what routing flips make of it.

The perturbation of μ shrinks over two decades; the slope of log(mean error) against log(scale) is the order. Without
replay a flip is a jump of fixed size with a probability proportional to the scale, so the value and the gradient are
judged apart, and over the members in which some route flips.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.sim.exact.fit import compare
from firstorder.sim.exact.measurement import update
from firstorder.sim.exact.objectives import gradient, values
from firstorder.sim.trials.budget import Budget, Verdict
from firstorder.sim.trials.statistics import Estimate, slope

from .claim import Claim, Outcome
from .ensemble import Ensemble, ensemble, recipe
from .targets import flip_share

SCALES = (0.1, 0.0316, 0.01, 0.00316, 0.001)


def _value_errors(group: Ensemble, mode: str, scale: float) -> tuple[Tensor, Tensor]:
    """|value error| of every member and its share of flipped routes."""
    scene = group.scene(scale, [mode], grad=False)
    return values(scene, mode).error.abs(), flip_share(scene)


def _gradient_errors(group: Ensemble, mode: str, scale: float) -> tuple[Tensor, Tensor]:
    """Gradient error of every member on its own target and its share of flipped routes."""
    scene = group.scene(scale, [mode])
    method = recipe("minirl-r3" if mode == "R3" else "minirl")
    return compare(update(scene, method), gradient(scene, mode)).error, flip_share(scene)


def _orders(group: Ensemble, mode: str, quantity: str) -> dict[str, object]:
    """Slopes over all members and over those with flips, with the errors that they were fitted to."""
    errors = _value_errors if quantity == "value" else _gradient_errors
    measured = [errors(group, mode, scale) for scale in SCALES]
    everyone = [torch.ones_like(e) for e, _ in measured]
    flipped = [(share > 0).double() for _, share in measured]

    def fit(weights: list[Tensor]) -> Estimate:
        sums = [group.per_policy(e * w) for (e, _), w in zip(measured, weights, strict=True)]
        return slope(SCALES, sums, [group.per_policy(w) for w in weights])

    return {
        "order": fit(everyone),
        "order_where_flips": fit(flipped),
        "scale": list(SCALES),
        "mean_error": [float(e.mean()) for e, _ in measured],
        "median_error": [float(e.median()) for e, _ in measured],
        "members_with_flips": [float(w.mean()) for w in flipped],
        "routes_flipped": [float(share.mean()) for _, share in measured],
    }


def _verdict(order: Estimate, low: float, high: float) -> Verdict:
    if order.inside(low, high):
        return "reproduced"
    return "not reproduced" if order.outside(low, high) else "inconclusive"


def _plain(orders: dict[str, object]) -> dict[str, object]:
    return {name: value.json() if isinstance(value, Estimate) else value for name, value in orders.items()}


def _claim(mode: str, quantity: str, key: str, low: float, high: float, budget: Budget) -> Outcome:
    orders = _orders(ensemble(spend(budget, quantity)), mode, quantity)
    order = orders[key]
    assert isinstance(order, Estimate)
    return Outcome(verdict=_verdict(order, low, high), headline=f"order {order}", measured=_plain(orders))


def spend(budget: Budget, quantity: str) -> Budget:
    """Values need no gradient and their errors are heavy-tailed: three times the policies."""
    policies = budget.policies * (3 if quantity == "value" else 1)
    return Budget(policies=policies, draws=budget.draws, first_seed=budget.first_seed)


SOURCE = "arXiv 2512.01374 sec. 3 (the approximation holds while both gaps are small); order: open question"

CLAIMS = [
    Claim(
        id="r3-value-order",
        statement="under R3 the value error is of second order in the perturbation",
        source=SOURCE,
        kind="empirical",
        rule="95% interval of the slope of the mean, scales 0.1 to 0.001: inside [1.8, 2.2] / outside / straddling",
        check=lambda budget: _claim("R3", "value", "order", 1.8, 2.2, budget),
    ),
    Claim(
        id="r3-gradient-order",
        statement="under R3 the gradient error is of first order in the perturbation",
        source=SOURCE,
        kind="empirical",
        rule="95% interval of the slope of the mean, scales 0.1 to 0.001: inside [0.9, 1.1] / outside / straddling",
        check=lambda budget: _claim("R3", "gradient", "order", 0.9, 1.1, budget),
    ),
    Claim(
        id="flips-value-order",
        statement="without replay, where routes flip, the value error is of first order instead of second",
        source=SOURCE,
        kind="empirical",
        rule="95% interval of the slope over members with flips: inside [0.5, 1.5] / outside / straddling",
        check=lambda budget: _claim("disabled", "value", "order_where_flips", 0.5, 1.5, budget),
    ),
    Claim(
        id="flips-gradient-order",
        statement="without replay, where routes flip, the gradient error falls more slowly than in proportion",
        source=SOURCE,
        kind="empirical",
        rule="95% interval of the slope over members with flips: below 0.9 / above 0.9 / straddling",
        check=lambda budget: _claim("disabled", "gradient", "order_where_flips", -0.5, 0.9, budget),
    ),
]
