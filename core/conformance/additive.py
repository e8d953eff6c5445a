"""The terms of a loss beside its weight that stand among the golden vectors: one of each kind, by what divides it.

Each has the coefficient 1, so that a recipe's weight is that of its method and its own coefficient times these:

    loss = -Σ_t w_t log π_θ(y_t) + Σ_t value_t / norm_t,    weight_t = -s_t / norm_t

s_t is the term's coefficient on the token's score. The entropy bonus has no token: its weight multiplies the gradient
of H_t, and its sign is that of a bonus.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import build, read, shipped

KEYS = {
    "reference_kl": ("terms.reference_estimator",),
    "entropy": (),
    "squared_log_ratio": ("terms.squared_of",),
}
"""By term, the keys beside its coefficient that it hangs on."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One term with one divisor.

    Args:
        name: of the row.
        kind: the key of `[terms]` that holds its coefficient.
        recipe: one that has this term alone, with the coefficient 1.
    """

    name: str
    kind: str
    recipe: Recipe

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved keys that it hangs on, dotted as TOML has them."""
        return settings(self.recipe, self.kind)

    @property
    def by(self) -> str:
        """The input that its gradient is taken by."""
        return "entropy" if self.kind == "entropy" else "logp_theta"

    @property
    def recipes(self) -> dict[str, float]:
        """The shipped recipes that have it, with their coefficient."""
        every = [build(Recipe, read(name)) for name in shipped()]
        return {
            one.about.name: getattr(one.terms, self.kind)
            for one in every
            if getattr(one.terms, self.kind) and settings(one, self.kind) == self.settings
        }


def settings(recipe: Recipe, kind: str) -> dict[str, Any]:
    """The keys of a recipe that one of its terms hangs on."""
    named = {key: getattr(recipe.terms, key.removeprefix("terms.")) for key in KEYS[kind]}
    return named | {f"aggregation.{key}": value for key, value in recipe.aggregation.model_dump().items()}


def _term(name: str, kind: str, divided: Mapping[str, Any] | None = None, **keys: Any) -> Term:
    made: dict[str, Any] = {"terms": {kind: 1.0, **keys}, "aggregation": divided or {"kind": "token_sum"}}
    return Term(name=name, kind=kind, recipe=build(Recipe, made))


def terms() -> tuple[Term, ...]:
    """Every term of the golden vectors; one of each kind over each divisor is not needed, and is not there."""
    length, tokens = {"kind": "length"}, {"kind": "token_mean"}
    return (
        *(
            _term(f"reference-{estimator}", "reference_kl", reference_estimator=estimator)
            for estimator in ("k1", "k2", "k3", "unbiased")
        ),
        _term("reference-k3-length", "reference_kl", length, reference_estimator="k3"),
        _term("reference-k3-token-mean", "reference_kl", tokens, reference_estimator="k3"),
        _term(
            "reference-k3-constant", "reference_kl", {"kind": "constant", "constant": 1024}, reference_estimator="k3"
        ),
        _term("squared-theta-mu", "squared_log_ratio", squared_of="theta/mu"),
        _term("squared-theta-old", "squared_log_ratio", squared_of="theta/old"),
        _term("entropy", "entropy"),
        _term("entropy-length", "entropy", length),
        _term("entropy-token-mean", "entropy", tokens),
    )
