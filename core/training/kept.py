"""The tokens that a rollout engine may have sampled at each position, replayed in π: the mask of top-p, top-k or min-p.

    log π(y | c) = logit_y - log Σ_{b ∈ kept(c)} exp(logit_b)

Both engines then speak of distributions over the same tokens, whose ratio has mean 1. Without it π gives a mass to
what μ never samples, every ratio is too low by the share that is left, and no weight on samples makes up for it.

Shapes: `...` any leading axes, B responses, L positions, V vocabulary, C kept tokens. A mask is int32 token ids
`[..., B, L, C]`, -1 behind them; a row of -1 alone leaves nothing out. Row t is of the distribution of token t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.core.errors import DataError
from firstorder.core.quantities import Moments, Quantity

PREFIX = "mask/"
QUANTITIES: dict[str, Quantity] = {
    PREFIX + "tokens_truncated": Quantity(
        formula="response tokens at which mu sampled from fewer tokens than there are, and pi was renormalised over "
        "the same",
        unit="share of response tokens",
        source="firstorder",
    ),
    PREFIX + "kept": Quantity(
        formula="tokens that mu sampled from, mean over the response tokens of mask/tokens_truncated",
        unit="tokens",
        source="firstorder",
    ),
    PREFIX + "mass_outside": Quantity(
        formula="sum of pi_old, not renormalised, over the tokens that mu left out, mean over response tokens",
        unit="probability",
        source="1 - E_mu[pi_old/mu] of a pi that is scored over all tokens",
    ),
}
"""The receipts of a mask that was replayed."""


def totals(scores: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """log Σ exp of scores over the kept tokens and over all, nats `[...]` each; the gap is minus the log mass kept.

    Args:
        scores: `[..., V]`, logits or log-probs.
        kept: int32 `[..., C]`, a row of a mask for each.
    """
    there, whole = kept >= 0, scores.logsumexp(-1)
    some = there.any(-1)
    picked = scores.gather(-1, kept.clamp(min=0).long())
    inside = torch.where(there | ~some[..., None], picked, -torch.inf)  # finite somewhere, so that no gradient is NaN
    return torch.where(some, inside.logsumexp(-1), whole), whole


def entropy(scores: Tensor, kept: Tensor) -> Tensor:
    """Entropy of the distribution over the kept tokens, nats `[...]`; arguments as of `totals`."""
    logp, there = scores.log_softmax(-1), kept >= 0
    inside = torch.where(there, logp.gather(-1, kept.clamp(min=0).long()), -torch.inf)
    inside = torch.where(there.any(-1, keepdim=True), inside, 0.0).log_softmax(-1)
    return torch.where(there.any(-1), -_plogp(inside), -_plogp(logp))


def _plogp(logp: Tensor) -> Tensor:
    there = logp > -torch.inf
    finite = torch.where(there, logp, 0.0)  # before it is multiplied, so that no gradient is NaN
    return torch.where(there, finite.exp() * finite, 0.0).sum(-1)


def check_kept(kept: Tensor, tokens: Tensor, mask: Tensor) -> None:
    """Refuse a mask that is none of these responses.

    Args:
        kept: a mask.
        tokens: int64 `[..., B, L]`.
        mask: bool `[..., B, L]`, of the sampled tokens.

    Raises:
        DataError: its shape or dtype; or a row off the response, with an id twice, or without the token sampled there.
    """
    if kept.ndim != tokens.ndim + 1 or kept.shape[:-1] != tokens.shape:
        sizes = ", ".join(str(n) for n in tokens.shape)
        raise DataError(f"`kept` must be [{sizes}, tokens kept], got {list(kept.shape)}")
    if kept.dtype != torch.int32:
        raise DataError(f"`kept` must be int32 token ids, got {kept.dtype}")
    there = kept >= 0
    some = there.any(-1)
    if (some & ~mask).any():
        raise DataError("`kept` must be -1 where `mask` is False, got tokens kept where none was sampled")
    out = some & ~(kept == tokens[..., None]).any(-1)
    if out.any():
        raise DataError(
            f"`kept` must hold the token that was sampled, got {int(out.sum())} rows without it, the first at "
            f"{out.nonzero()[0].tolist()}; the rows are shifted, or are those of another engine"
        )
    ids = kept.sort(-1).values
    if ((ids[..., 1:] == ids[..., :-1]) & (ids[..., 1:] >= 0)).any():
        raise DataError("`kept` must name a token once in a row, got one twice")


def masked(kept: Tensor | None, mask: Tensor, outside: Tensor) -> Moments:
    """The receipts of a mask that was replayed, as (numerator, denominator) `[...]`; none without one.

    Args:
        kept: a mask.
        mask: bool `[..., B, L]`.
        outside: `[..., B, L]`, mass of π_old on what was left out.
    """
    if kept is None:
        return {}
    there = kept >= 0
    some, count = there.any(-1).double().sum((-2, -1)), mask.double().sum((-2, -1))
    return {
        PREFIX + "tokens_truncated": (some, count),
        PREFIX + "kept": (there.double().sum((-3, -2, -1)), some),
        PREFIX + "mass_outside": (torch.where(mask, outside.double(), 0.0).sum((-2, -1)), count),
    }
