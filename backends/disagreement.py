"""Why the rollout engine's log-probs are not the trainer's: it samples from another distribution, or has other weights.

Truncation to top-k or top-p tokens of mass S adds -log S >= 0 to every log-prob that is sampled; another temperature is
undone by scoring at that temperature; other weights move log-probs in both directions and no temperature explains them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

EXPLAINED = 0.1  # share of a difference that may remain where its cause was found
SEARCHES = 16  # halvings of the interval in which a temperature is looked for


def distribution(mu: Tensor, score: Callable[[float], Tensor], temperature: float) -> str | None:
    """How the distribution that was sampled differs, in words; None if no temperature or truncation explains it.

    Args:
        mu: log-probs of sampled tokens as the rollout engine reports them, `[tokens]`.
        score: the trainer's log-probs of the same tokens at a temperature.
        temperature: that was asked for.
    """
    difference = mu - score(temperature)
    size = float(difference.abs().mean())
    if not math.isfinite(size):
        return None
    if float(difference.clamp(max=0.0).abs().mean()) <= EXPLAINED / 10 * size:
        mass = math.exp(-float(difference.mean()))
        return f"each is higher, as where the tokens sampled from (top-k, top-p, min-p) have a mass of {mass:.2g}"
    fitted, left = _temperature(mu, score, temperature)
    return f"they are those at a temperature of {fitted:.3g}" if left <= EXPLAINED * size else None


def _temperature(mu: Tensor, score: Callable[[float], Tensor], about: float) -> tuple[float, float]:
    """The temperature between about / 8 and 8 · about that fits best, and the mean |difference| that it leaves."""

    def left(at: float) -> float:
        return float((mu - score(math.exp(at))).abs().mean())

    low, high = math.log(about / 8), math.log(8 * about)
    for _ in range(SEARCHES):
        one, two = low + 0.4 * (high - low), low + 0.6 * (high - low)
        low, high = (low, two) if left(one) < left(two) else (one, high)
    best = (low + high) / 2
    return math.exp(best), left(best)
