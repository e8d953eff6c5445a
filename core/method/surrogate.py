"""Every method as a weight on the score function.

The expected update of a recipe is

    u = E_{y~μ_old}[ Σ_t w_t · ∇_θ log π_θ(y_t | c_t) ],     w_t = A · clip(ratio)_t · correction_t · kept_t / norm_t

with a weight w that carries no gradient. eq. (4) has ratio π_θ/μ_old and nothing else; eq. (7), MiniRL, adds M_t.
What is validated on an exhaustive batch, whose `measure` is μ(y), and what runs on a sampled one, whose
measure is 1/B, is the same two functions below.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firstorder.core.quantities import Quantity

from .aggregation import normaliser
from .clip import clip
from .correction import batch_mean, correction
from .ratio import BOUND, LOG_BOUND, ratio, saturated
from .recipe import Recipe
from .rejection import kept
from .shift import rescale
from .stats import TokenStats


@dataclass(frozen=True, kw_only=True)
class TokenWeights:
    """The weight of every token and the factors that it was made of, all `[..., B, T]`.

    `weight = token_advantage · min(clipped · correction, BOUND) · kept / norm` on the mask and 0 off it; `kept` is 0
    where a rejection leaves a token out, else 1. The mean of a correction that has mean 1 is a part of `norm`.
    """

    weight: Tensor
    ratio: Tensor
    clipped: Tensor
    correction: Tensor
    kept: Tensor
    norm: Tensor

    @property
    def factor(self) -> Tensor:
        """What multiplies A · clipped / norm: the product of two ratios is a ratio, and held as one."""
        return torch.minimum(self.correction, BOUND / self.clipped) * self.kept


def token_weights(stats: TokenStats, recipe: Recipe) -> TokenWeights:
    """w_t of a recipe for one batch.

    Args:
        stats: log-probabilities, mask and advantage; `[..., B, T]`.
        recipe: the method.

    Returns:
        The weights and their factors; none requires grad.

    Reference:
        arXiv 2512.01374 eqs. (4), (7).
    """
    r = ratio(stats, recipe.ratio.of, recipe.ratio.span, recipe.ratio.steps)
    r = rescale(stats, r, recipe.ratio.router_floor)
    clipped = clip(stats, r, recipe)
    factor = correction(stats, recipe.correction)
    norm = normaliser(stats, recipe.aggregation) * batch_mean(stats, recipe.correction, factor)
    held = kept(stats, recipe.rejection)
    made = TokenWeights(weight=r, ratio=r, clipped=clipped, correction=factor, kept=held, norm=norm)
    weight = stats.token_advantage * clipped * made.factor / norm
    return replace(made, weight=torch.where(_scored(stats), weight, 0.0).to(stats.logp_theta.dtype).detach())


def surrogate_loss(stats: TokenStats, weight: Tensor) -> Tensor:
    """-Σ_b m_b Σ_t w_bt log π_θ(y_bt): its gradient is minus the expected update; shape `[...]`.

    Args:
        stats: `logp_theta` carries the gradient; m_b is the response's measure, or 1/B.
        weight: `[..., B, T]` from `token_weights`.
    """
    per_response = (weight.detach() * torch.where(_scored(stats), stats.logp_theta, 0.0)).sum(-1)
    return -(stats.weights * per_response).sum(-1)


def _scored(stats: TokenStats) -> Tensor:
    """The response tokens that have a score: log π_θ of a token that π_θ cannot choose is -inf and has no gradient."""
    return stats.mask & (stats.logp_theta.detach() > -torch.inf)


_SHARE = "share of response tokens"
RECEIPTS: dict[str, Quantity] = {
    "clip_upper": Quantity(
        formula="the clip changed the ratio and A > 0",
        unit=_SHARE,
        source="TRL clip_ratio/high_mean; with clip_lower, verl actor/pg_clipfrac",
    ),
    "clip_lower": Quantity(
        formula="the clip changed the ratio and A < 0",
        unit=_SHARE,
        source="TRL clip_ratio/low_mean; with clip_upper, verl actor/pg_clipfrac",
    ),
    "truncated": Quantity(
        formula="correction.kind = truncate held the correction factor at correction.high, or at a low above 0",
        unit="share of response tokens; of responses where correction.span is sequence or geometric",
        source="verl rollout_corr/rollout_is_ratio_fraction_high",
    ),
    "masked": Quantity(
        formula="the correction factor is 0, or a rejection leaves the token out",
        unit=_SHARE,
        source="verl rollout_corr/rollout_rs_masked_fraction",
    ),
    "corrected": Quantity(
        formula="the correction factor is not 1, or a rejection leaves the token out", unit=_SHARE, source="firstorder"
    ),
    "ratio_not_one": Quantity(formula="the ratio of [ratio] is not 1", unit=_SHARE, source="firstorder"),
    "saturated": Quantity(
        formula=f"the ratio of [ratio], the correction or their product was held at exp({LOG_BOUND:g})",
        unit=_SHARE,
        source="the bound is that of verl's clamp of the log ratio",
    ),
}


def receipts(stats: TokenStats, factors: TokenWeights, recipe: Recipe) -> dict[str, tuple[Tensor, Tensor]]:
    """What each part of a recipe did to this batch, as (tokens acted on, response tokens) `[...]`; see `RECEIPTS`.

    A truncated span of a whole response is counted in responses. Each counts by its response's measure, or 1 in a
    sampled batch.
    """
    # a clip that gives every token of a response one ratio has clipped what it dropped
    merged = recipe.parts["clip.kind"].scope == "sequence"
    clipped = factors.clipped == 0 if merged else factors.clipped != factors.ratio
    rule, factor = recipe.correction, factors.correction
    truncates = torch.full_like(stats.mask, rule.kind == "truncate")
    held = (factor == rule.high) | ((factor == rule.low) & (rule.low > 0))
    acted = {
        "clip_upper": clipped & (stats.token_advantage > 0),
        "clip_lower": clipped & (stats.token_advantage < 0),
        "truncated": truncates & held,
        "masked": factor * factors.kept == 0,
        "corrected": factor * factors.kept != 1,
        "ratio_not_one": factors.ratio != 1,
        "saturated": saturated(factors.ratio) | saturated(factor) | saturated(factors.clipped * factor),
    }
    weight = stats.counts
    tokens = (weight * stats.mask.sum(-1)).sum(-1)
    counts = {name: ((weight * (hit & stats.mask).sum(-1)).sum(-1), tokens) for name, hit in acted.items()}
    if rule.span in ("sequence", "geometric"):  # one factor a response, which verl counts once
        truncated = (acted["truncated"] & stats.mask).any(-1)
        counts["truncated"] = (weight * truncated).sum(-1), (weight * stats.mask.any(-1)).sum(-1)
    return counts
