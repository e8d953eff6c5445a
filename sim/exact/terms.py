"""The terms of a loss in the simulator: exact coefficients of those that are sums over the vocabulary, and a report.

Those of sampled tokens are `core.method.terms.term_weights` of every edge, times how often μ_old takes it; these two
have one of every token v at every context c that μ_old comes to,

    entropy   -e d(c) π(v|c) log π(v|c)
    full      -β d(c) π(v|c) log π(v|c)/π_ref(v|c)

Shapes: M members, N contexts, V vocabulary, P parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from firstorder.core.method.recipe import Terms
from firstorder.core.method.terms import FUNCTIONS, PREFIX, active, entropy_slopes, full_slopes, moments
from firstorder.core.quantities import Quantity, means

from .edges import vjp

if TYPE_CHECKING:
    from .measurement import Measurement


REPORTED: dict[str, Quantity] = {
    "value": Quantity(
        formula="the term before its coefficient, mean over response tokens that μ_old draws",
        unit="nats/token, squared for squared_log_ratio",
        source="terms/ of train",
    ),
    "norm": Quantity(
        formula="‖u_k‖, u_k the term's exact part of u", unit="reward per unit of weight", source="firstorder"
    ),
    "share": Quantity(formula="‖u_k‖ / ‖g‖; null where g is 0", unit="1", source="firstorder"),
    "cosine": Quantity(formula="⟨u_k, g⟩ / (‖u_k‖ ‖g‖); null where either is 0", unit="1", source="firstorder"),
    "error": Quantity(
        formula="‖u_k - u_full‖ / ‖u_full‖ of reference_kl, u_full that of the estimator full: what it makes of the "
        "gradient of the KL on the contexts of μ_old; null where that is 0",
        unit="1",
        source="firstorder",
    ),
}
"""What `measure` says of each term, in the table `terms` of its result."""


def of_distributions(terms: Terms, reached: Tensor, logp: Tensor, logp_ref: Tensor) -> dict[str, Tensor]:
    """What the terms that are sums over the vocabulary add to the coefficient of every edge, by name, `[M, N, V]`.

    Args:
        terms: of the recipe.
        reached: `[M, N, 1]`, how often a response comes to each context, over its norm.
        logp: `[M, N, V]` nats, of π_θ.
        logp_ref: `[M, N, V]` nats, of π_ref.
    """
    found = {}
    if terms.reference_kl and terms.reference_estimator not in FUNCTIONS:
        found["reference_kl"] = -terms.reference_kl * reached * full_slopes(logp, logp_ref)
    if terms.entropy:
        found["entropy"] = terms.entropy * reached * entropy_slopes(logp)
    return found


def report(measurement: Measurement) -> dict[str, dict[str, float | None]]:
    """What each term of a recipe does, by name, under the names of `REPORTED`; means over members."""
    recipe = measurement.recipe
    g = measurement.gradient.mean(0)
    made = {name: _vector(measurement, edges) for name, edges in measurement.term_coefficients.items()}
    found: dict[str, dict[str, float | None]] = {}
    for name, value in _values(measurement).items():
        u = made[name]
        found[name] = {
            "value": float(value.mean()),
            "norm": float(u.norm()),
            "share": _ratio(u.norm(), g.norm()),
            "cosine": _ratio(u @ g, u.norm() * g.norm()),
        }
    if "reference_kl" in found:
        exact = recipe.terms.model_copy(update={"reference_estimator": "full"})
        whole = _vector(measurement, measurement.of_distributions(exact)["reference_kl"])
        found["reference_kl"]["error"] = _ratio((made["reference_kl"] - whole).norm(), whole.norm())
    return found


def _vector(measurement: Measurement, edges: Tensor) -> Tensor:
    """The update of edge coefficients, the mean over members, `[P]`."""
    return vjp(measurement.target, edges, measurement.scene.weights).mean(0)


def _ratio(above: Tensor, below: Tensor) -> float | None:
    """None where nothing is relative to `below`."""
    return float(above / below) if below else None


def _values(measurement: Measurement) -> dict[str, Tensor]:
    """Each term before its coefficient, a mean over the response tokens that μ_old draws, `[M]`."""
    recipe, scene = measurement.recipe, measurement.scene
    sums = moments(measurement.stats_of_edges, recipe, active([recipe]))
    found = {name.removeprefix(PREFIX): value for name, value in means(sums).items()}
    if recipe.terms.reference_kl and recipe.terms.reference_estimator not in FUNCTIONS:
        policies = measurement.target.logp.detach(), scene.logp_ref(measurement.mode)
        found["reference_kl"] = (scene.share * full_slopes(*policies).sum(-1)).sum(-1)
    return found
