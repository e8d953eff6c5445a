"""The KL of the engines in parts of a batch: responses that fail, responses that succeed, tokens whose experts flipped.

An update raises what succeeds and lowers what fails. Engines that agree on average may still drift apart where only
failing responses go, which a mean over all tokens hides.

Each is a mean of -D = log μ - log π_old over the response tokens of a part. A batch may have none of them, and then it
is 0: no token was seen to disagree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.core.method.stats import TokenStats
from firstorder.core.quantities import Moments, Quantity

_NONE = "0 where there are none"
QUANTITIES: dict[str, Quantity] = {
    "kl_failing": Quantity(
        formula=f"mean(-D) over response tokens with A < 0; {_NONE}", unit="nats/token", source="kl, by the sign of A"
    ),
    "kl_succeeding": Quantity(
        formula=f"mean(-D) over response tokens with A > 0; {_NONE}", unit="nats/token", source="kl, by the sign of A"
    ),
    "kl_flipped": Quantity(
        formula=f"mean(-D) over the response tokens that route/tokens_flipped counts; {_NONE}",
        unit="nats/token",
        source="kl, where experts flipped; D with the recipe's replay, flips without",
    ),
}


def moments(stats: TokenStats) -> Moments:
    """`kl_failing` and `kl_succeeding` as (numerator, denominator) `[...]`, float64.

    Tokens weigh by their response's measure, or 1 in a sampled batch. What has the advantage 0 is in neither part.
    """
    mask, advantage = stats.mask, stats.advantage
    of_token = advantage.ndim == mask.ndim
    apart = torch.where(mask, stats.logp_mu.detach().double() - stats.logp_old.detach().double(), 0.0)
    # an advantage of a whole response: its tokens are summed once, for both parts
    each, count = (apart, mask.double()) if of_token else (apart.sum(-1), mask.sum(-1).double())

    def over(part: Tensor, x: Tensor) -> Tensor:
        kept = torch.where(part, x, 0.0)
        return (stats.counts.double() * (kept.sum(-1) if of_token else kept)).sum(-1)

    parts = {"kl_failing": advantage < 0, "kl_succeeding": advantage > 0}
    return {name: (over(part, each), over(part, count)) for name, part in parts.items()}


def finalise(sums: Moments) -> dict[str, Tensor]:
    """Those of `QUANTITIES` whose moments are given, after any reduction."""
    known = {name: sums[name] for name in QUANTITIES if name in sums}
    return {name: torch.where(count > 0, total / count, 0.0) for name, (total, count) in known.items()}
