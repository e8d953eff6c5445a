"""Terms of the loss beside the weighted log-probs: KL to a reference, entropy bonus, squared log ratio.

    loss = -Σ_t w_t log π_θ(y_t) + Σ_t (β KL_t + c (log r_t)² - e H_t) / norm_t

w_t is homogeneous in the advantage and a term does not hold one. What a term makes of a sampled token is again a
coefficient on its score, s_t ∇ log π_θ(y_t), so that it is added to w_t as -β s_t / norm_t; `full` and the entropy are
sums over the vocabulary. With d = log π_θ/π_ref, μ the policy that was sampled and E over its tokens:

    estimator    value KL_t       s_t          E_π[s_t ∇ log π_θ], μ = π_θ
    k1           d                1            0: it restrains nothing
    k2           d² / 2           d            ∇ KL(π_θ ‖ π_ref)
    k3           e^-d - 1 + d     1 - e^-d     ∇ KL(π_ref ‖ π_θ), of its value the other direction
    unbiased     π_θ/μ · k3       π_θ/μ · d    ∇ KL(π_θ ‖ π_ref), for any μ
    full         Σ_v π_θ d        -            the same, without the noise of a sampled token

None of k1, k2, k3 and (log r)² is importance weighted, as the field ships them: they hold under μ, not under π_θ. Terms
are divided as weights are (`[aggregation]`) and no clip, correction or mask of a weight touches them. Log-ratios are
held at `ratio.LOG_BOUND`.

Shapes: `...` any leading axes (an ensemble), B responses, T token positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core.errors import ConfigError, DataError
from firstorder.core.quantities import Moments, Quantity

from .aggregation import normaliser
from .ratio import LOG_BOUND, log_ratio
from .recipe import Recipe
from .stats import TokenStats
from .surrogate import surrogate_loss
from .term_kinds import TERMS

PREFIX = "terms/"
QUANTITIES: dict[str, Quantity] = {
    f"{PREFIX}reference_kl": Quantity(
        formula="terms.reference_estimator of KL(pi_theta || pi_ref), that of k3 where it is full, mean over response "
        "tokens and updates, before its coefficient",
        unit="nats/token",
        source="verl actor/kl_loss; TRL kl",
    ),
    f"{PREFIX}entropy": Quantity(
        formula="-sum_v pi_theta(v) log pi_theta(v), mean over response tokens and updates, before its coefficient",
        unit="nats/token",
        source="verl actor/entropy; of pi_theta, where update/entropy is of pi_old",
    ),
    f"{PREFIX}squared_log_ratio": Quantity(
        formula="(log r)^2 of the ratio terms.squared_of, mean over response tokens and updates, before its "
        "coefficient",
        unit="nats^2/token",
        source="prime-rl, its kl_loss over tokens",
    ),
}
"""What training logs of the terms that a recipe has."""


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """A token's share of KL(π_θ ‖ π_ref) and what its gradient is on the token's score.

    Args:
        value: of d = log π_θ/π_ref and r = π_θ/μ, nats.
        slope: s_t of the same.
    """

    value: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]


def k3(d: Tensor) -> Tensor:
    """e^-d - 1 + d ≥ 0, by expm1, which keeps its digits where d is small."""
    return ((-d).expm1() + d).clamp(min=0.0)


FUNCTIONS: dict[str, Estimator] = {
    "k1": Estimator(value=lambda d, r: d, slope=lambda d, r: torch.ones_like(d)),
    "k2": Estimator(value=lambda d, r: d.square() / 2, slope=lambda d, r: d),
    "k3": Estimator(value=lambda d, r: k3(d), slope=lambda d, r: -(-d).expm1()),
    "unbiased": Estimator(value=lambda d, r: r * k3(d), slope=lambda d, r: r * d),
}
"""The estimators that a sampled token has, by `terms.reference_estimator`."""


def values(stats: TokenStats, recipe: Recipe) -> dict[str, Tensor]:
    """What every term of a recipe is at each token before its coefficient, by name, float64 `[..., B, T]`.

    Raises:
        DataError: the batch has no `logp_ref` or no `entropy`, and a term reads it.
    """
    terms, found = recipe.terms, {}
    if terms.reference_kl:
        estimator = FUNCTIONS.get(terms.reference_estimator, FUNCTIONS["k3"])
        found["reference_kl"] = estimator.value(*_of_reference(stats))
    if terms.squared_log_ratio:
        found["squared_log_ratio"] = _held_ratio(stats, terms.squared_of).square()
    if terms.entropy:
        found["entropy"] = _entropy(stats).detach().double()
    return found


def slopes(stats: TokenStats, recipe: Recipe) -> dict[str, Tensor]:
    """s_t of every term of a recipe that a sampled token has, by name, float64 `[..., B, T]`; raises as `values`."""
    terms, found = recipe.terms, {}
    if terms.reference_kl and terms.reference_estimator in FUNCTIONS:
        found["reference_kl"] = FUNCTIONS[terms.reference_estimator].slope(*_of_reference(stats))
    if terms.squared_log_ratio:
        found["squared_log_ratio"] = 2 * _held_ratio(stats, terms.squared_of)
    return found


def term_weights(stats: TokenStats, recipe: Recipe) -> dict[str, Tensor]:
    """What every term that a sampled token has adds to w_t: -coefficient · s_t / norm_t, by name, `[..., B, T]`.

    0 off the mask and where π_θ is 0, without gradient; raises as `values`.
    """
    if not recipe.terms.active:
        return {}
    scored = stats.mask & (stats.logp_theta.detach() > -torch.inf)
    norm, zero = normaliser(stats, recipe.aggregation), torch.zeros((), dtype=torch.float64)
    return {
        name: torch.where(scored, -getattr(recipe.terms, name) * s / norm, zero.to(s.device)).to(stats.logp_theta.dtype)
        for name, s in slopes(stats, recipe).items()
    }


def with_terms(weight: Tensor, stats: TokenStats, recipe: Recipe) -> Tensor:
    """w_t with what the terms of sampled tokens add to it, `[..., B, T]`."""
    for added in term_weights(stats, recipe).values():
        weight = weight + added
    return weight


def entropy_weights(stats: TokenStats, recipe: Recipe) -> Tensor:
    """e / norm_t on response tokens, `[..., B, T]`: what `bonus_loss` multiplies each entropy by."""
    weight = recipe.terms.entropy / normaliser(stats, recipe.aggregation)
    return torch.where(stats.mask, weight, 0.0).to(stats.logp_theta.dtype)


def bonus_loss(stats: TokenStats, weight: Tensor) -> Tensor:
    """-Σ_b m_b Σ_t e_bt H(π_θ(·|c_bt)), the entropy bonus as a loss; `[...]`.

        ∇ H = -Σ_v π_θ(v) log π_θ(v) ∇ log π_θ(v)

    Args:
        stats: `entropy` carries the gradient; m_b is the response's measure, or 1/B.
        weight: `[..., B, T]` from `entropy_weights`.

    Raises:
        DataError: the batch has no `entropy`.

    Reference:
        Mnih et al. 2016, arXiv 1602.01783 sec. 4; verl `entropy_coeff`.
    """
    per_response = (weight.detach() * torch.where(stats.mask, _entropy(stats), 0.0)).sum(-1)
    return -(stats.weights * per_response).sum(-1)


def total_loss(stats: TokenStats, weight: Tensor, bonus: Tensor | None) -> Tensor:
    """`surrogate_loss` of w_t, terms included, and `bonus_loss` where there is a bonus; `[...]`."""
    loss = surrogate_loss(stats, weight)
    return loss if bonus is None else loss + bonus_loss(stats, bonus)


def entropy_slopes(logp: Tensor) -> Tensor:
    """-π(v) log π(v), the coefficient of ∇ log π(v) in the gradient of a distribution's entropy; `[..., V]`."""
    return -logp.exp() * logp


def full_slopes(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """π(v) log π(v)/π_ref(v), the coefficient of ∇ log π(v) in that of KL(π ‖ π_ref); `[..., V]`."""
    return logp.exp() * held(logp - logp_ref)


def moments(stats: TokenStats, recipe: Recipe, wanted: Collection[str]) -> Moments:
    """The sums over response tokens of the values of terms, by the names of `QUANTITIES`, `[...]`.

    Args:
        stats: the batch.
        recipe: whose terms.
        wanted: of `TERMS`; 0 for those that the recipe has not.
    """
    weight, mask = stats.counts.double(), stats.mask
    tokens = (weight * mask.sum(-1)).sum(-1)
    sums = {
        name: (weight * torch.where(mask, x, 0.0).sum(-1)).sum(-1)
        for name, x in (values(stats, recipe).items() if wanted else ())
    }
    return {f"{PREFIX}{name}": (sums.get(name, torch.zeros_like(tokens)), tokens) for name in wanted}


def active(recipes: Iterable[Recipe]) -> list[str]:
    """Which of `TERMS` any of some recipes has."""
    every = list(recipes)
    return [name for name in TERMS if any(getattr(recipe.terms, name) for recipe in every)]


def quantities(recipes: Iterable[Recipe]) -> dict[str, Quantity]:
    """What training logs of the terms of some recipes."""
    return {f"{PREFIX}{name}": QUANTITIES[f"{PREFIX}{name}"] for name in active(recipes)}


def check_sampled(recipe: Recipe) -> None:
    """Refuse a term that no sampled token has.

    Raises:
        ConfigError: the KL to the reference is a sum over the vocabulary.
    """
    if recipe.terms.reference_kl and recipe.terms.reference_estimator not in FUNCTIONS:
        raise ConfigError(
            f"terms.reference_estimator = {recipe.terms.reference_estimator} reads the whole distribution of the "
            "reference, of which a sampled update has one token each; set unbiased, whose expected gradient is the same"
        )


def held(log: Tensor) -> Tensor:
    """A log-ratio between -`LOG_BOUND` and `LOG_BOUND`."""
    return log.clamp(-LOG_BOUND, LOG_BOUND)


def _held_ratio(stats: TokenStats, of: str) -> Tensor:
    return held(log_ratio(stats, of))


def _of_reference(stats: TokenStats) -> tuple[Tensor, Tensor]:
    """log π_θ/π_ref and π_θ/μ, 0 and 1 off the mask."""
    if stats.logp_ref is None:
        raise DataError(
            "terms.reference_kl reads `logp_ref`, log-probs under the reference policy, and the batch has none; "
            "score it with the reference, or set terms.reference_kl = 0"
        )
    return _held_ratio(stats, "theta/ref"), _held_ratio(stats, "theta/mu").exp()


def _entropy(stats: TokenStats) -> Tensor:
    if stats.entropy is None:
        raise DataError(
            "terms.entropy reads `entropy`, that of pi_theta at every token, and the batch has none; give it with its "
            "gradient, or set terms.entropy = 0"
        )
    return stats.entropy
