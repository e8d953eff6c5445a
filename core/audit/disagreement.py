"""Why the rollout engine's log-probs are not the trainer's: it samples from another distribution, or has other weights.

Truncation to top-k or top-p tokens of mass S adds -log S >= 0 to every log-prob that is sampled; another temperature is
undone by scoring at that temperature; other weights move log-probs in both directions and no temperature explains them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

EXPLAINED = 0.1  # share of a difference that may remain where its cause was found
WIDEST = 8.0  # times hotter or colder: the interval in which a temperature is looked for
SEARCHES = 22  # scorings, which find a temperature to 2 parts in 10,000
GOLDEN = (math.sqrt(5) - 1) / 2


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
    mass = kept_mass(difference)
    if mass is not None:
        return f"each is higher, as where the tokens sampled from (top-k, top-p, min-p) have a mass of {mass:.2g}"
    fitted, left = fitted_temperature(mu, score, temperature)
    return f"they are those at a temperature of {fitted:.3g}" if left <= EXPLAINED * size else None


def kept_mass(difference: Tensor) -> float | None:
    """The mass S of tokens that were sampled from, where all of log μ - log π are as -log S ≥ 0 is; else None."""
    size = float(difference.abs().mean())
    below = float(difference.clamp(max=0.0).abs().mean())
    return math.exp(-float(difference.mean())) if size > 0 and below <= EXPLAINED / 10 * size else None


def fitted_temperature(mu: Tensor, score: Callable[[float], Tensor], about: float) -> tuple[float, float]:
    """The temperature between about / 8 and 8 · about that fits best, and the mean |difference| that it leaves.

    Args:
        mu: log-probs, `[tokens]` nats.
        score: log-probs at a temperature, `[tokens]` nats; called `SEARCHES` times.
        about: in the middle of the interval's logarithm.
    """

    def left(at: float) -> float:
        return float((mu - score(math.exp(at))).abs().mean())

    low, high = (math.log(about) + side * math.log(WIDEST) for side in (-1, 1))
    one, two = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    of_one, of_two = left(one), left(two)
    for _ in range(SEARCHES - 2):
        if of_one < of_two:
            high, two, of_two = two, one, of_one
            one = high - GOLDEN * (high - low)
            of_one = left(one)
        else:
            low, one, of_one = one, two, of_two
            two = low + GOLDEN * (high - low)
            of_two = left(two)
    return (math.exp(one), of_one) if of_one < of_two else (math.exp(two), of_two)
