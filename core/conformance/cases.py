"""How a batch of the golden vectors is written down.

A row is one response. Its probabilities are written as people write them, `1/4 1/2`, so that ratios are exact; what is
kept are their logarithms. Off the mask stands what must not be read: probabilities of 99, whose logarithm is no
log-prob.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

Numbers = tuple[float, ...]
Rows = tuple[Numbers, ...]
OFF = "99"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One response: a mask of 0 and 1, numbers with spaces between them, its advantage and its reward.

    Args:
        mask: `[T]`, 1 on response tokens.
        mu, old, theta, ref: `[T]` probabilities under μ, π_old, π_θ and π_ref.
        entropy: `[T]` nats, of π_θ(.|c_t).
        kl: `[T]` nats, KL(μ(.|c_t) ‖ π_θ(.|c_t)).
        shift: `[T]` nats, mean |log router_θ - log router_old|.
        advantage: in units of reward; of `[T]` where every token has its own.
        reward: of the response.
    """

    mask: str
    mu: str
    old: str
    theta: str
    ref: str
    entropy: str
    kl: str
    shift: str
    advantage: str
    reward: float


@dataclass(frozen=True, kw_only=True)
class Case:
    """One batch, with names as in `core.method.stats.TokenStats`; rows are of one length."""

    name: str
    about: str
    rows: tuple[Row, ...]

    def inputs(self) -> dict[str, Rows | Numbers]:
        """What a method reads, `[B, T]` or `[B]` each; the mask as 0 and 1."""
        width = max(len(row.mask) for row in self.rows)
        advantages = [_numbers(row.advantage) for row in self.rows]
        of_response = all(len(each) == 1 for each in advantages)
        return {
            "logp_theta": tuple(_logs(row.theta, width) for row in self.rows),
            "logp_old": tuple(_logs(row.old, width) for row in self.rows),
            "logp_mu": tuple(_logs(row.mu, width) for row in self.rows),
            "logp_ref": tuple(_logs(row.ref, width) for row in self.rows),
            "entropy": tuple(_padded(_numbers(row.entropy), width) for row in self.rows),
            "mask": tuple(tuple(map(int, row.mask.ljust(width, "0"))) for row in self.rows),
            "advantage": _firsts(advantages) if of_response else tuple(_padded(each, width) for each in advantages),
            "kl_mu": tuple(_padded(_numbers(row.kl), width) for row in self.rows),
            "router_shift": tuple(_padded(_numbers(row.shift), width) for row in self.rows),
            "rewards": tuple(row.reward for row in self.rows),
        }


def _numbers(text: str) -> Numbers:
    return tuple(float(Fraction(each)) for each in text.split())


def _firsts(rows: list[Numbers]) -> Numbers:
    return tuple(row[0] for row in rows)


def _padded(numbers: Numbers, width: int) -> Numbers:
    return numbers + (float(OFF),) * (width - len(numbers))


def _logs(text: str, width: int) -> Numbers:
    return tuple(math.log(p) if p > 0 else -math.inf for p in _padded(_numbers(text), width))
