"""Odds: how far a count may stray by chance, so that a clean dump is accused once in a billion tests.

A sign test asks which of two readings of a dump is the closer one, token by token. Where the reading that the file
claims is right, it wins more often than not; where nothing relates the two, each wins half of the time. So at most
half of the tokens favour a wrong reading, whatever the distribution of the differences is, and

    z = (for - against) / sqrt(DEPENDENCE (for + against))

is above `Z` by chance less than once in a billion times.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEVEL = 1e-9  # of a test, one-sided
Z = 6.0  # standard normal quantile of LEVEL
Z_CHOSEN = 8.0  # where the alternative is the best of up to a million: 6e-16 each
Z_SEVERAL = 4.0  # where many responses reach it by themselves
CHANCE = 3.2e-5  # of Z_SEVERAL, one-sided
DEPENDENCE = 3.0  # of a difference that shares a term with that of each neighbour: at most three times the variance


def sign_z(favour: Tensor, against: Tensor, dependence: float | Tensor = DEPENDENCE) -> Tensor:
    """z of a sign test, float64 like its counts; 0 where nothing was counted.

    Args:
        favour: tokens at which the other reading is closer.
        against: tokens at which the reading that the file claims is closer.
        dependence: by how much the variance of the sum exceeds that of independent tokens.
    """
    trials = (favour + against).double()
    return (favour - against).double() / (dependence * trials).clamp(min=1.0).sqrt()


def bigrams(tokens: Tensor, seen: Tensor) -> Tensor:
    """How many different pairs of a token and the one before it there are in every row, int64 `[B]`.

    Text that repeats itself brings the same contexts back, and with them the same differences between two engines: so
    many tokens are independent at most.

    Args:
        tokens: int64 `[B, L]`.
        seen: bool `[B, L]`, those that count.
    """
    pair = torch.roll(tokens, 1, -1) * 0x9E3779B1 + tokens
    ordered = torch.where(seen, pair, -1).sort(-1).values
    fresh = torch.ones_like(seen)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return (fresh & (ordered != -1)).sum(-1)


def tail(hits: int, trials: int, chance: float) -> float:
    """A bound on the probability of so many hits or more (Chernoff): exp(-n KL(hits / n, chance)); 1 below the mean.

    Example:
        >>> tail(10, 10, 0.1) <= 1e-9
        True
    """
    share = hits / trials if trials else 0.0
    if share <= chance:
        return 1.0
    if chance <= 0.0:
        return 0.0
    spread = share * math.log(share / chance)
    if share < 1.0:
        spread += (1 - share) * math.log((1 - share) / (1 - chance))
    return math.exp(-trials * spread)


def several(strong: Tensor, likely: Tensor, tried: Tensor) -> Tensor:
    """The responses of `strong`, bool `[B]`; or of `likely`, where they are more than chance gives at `Z_SEVERAL`.

    Args:
        strong: those beyond `Z_CHOSEN`.
        likely: those beyond `Z_SEVERAL`.
        tried: `[B]`, alternatives of which each shows its best.
    """
    chance = float((CHANCE * tried.double()).clamp(max=1.0).mean())
    return likely if tail(int(likely.sum()), len(likely), chance) <= LEVEL else strong


def tails(hits: Tensor, trials: Tensor, chance: Tensor) -> Tensor:
    """log of `tail`, elementwise, in float64."""
    n = trials.double().clamp(min=1.0)
    share, chance = (hits / n).clamp(0.0, 1.0), chance.double().clamp(1e-12, 1.0)
    spread = torch.special.xlogy(share, share / chance)
    spread = spread + torch.special.xlogy(1 - share, (1 - share) / (1 - chance).clamp(min=1e-12))
    return torch.where(share > chance, -n * spread, 0.0)
