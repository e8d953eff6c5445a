"""The inputs of the golden vectors: batches of log-probs, and groups of rewards, number by number.

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
        mu, old, theta: `[T]` probabilities under μ, π_old and π_θ.
        kl: `[T]` nats, KL(μ(.|c_t) ‖ π_θ(.|c_t)).
        shift: `[T]` nats, mean |log router_θ - log router_old|.
        advantage: in units of reward; of `[T]` where every token has its own.
        reward: of the response.
    """

    mask: str
    mu: str
    old: str
    theta: str
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


CASES: tuple[Case, ...] = (
    Case(
        name="rationals",
        about="Every ratio is a rational number, so that weights can be checked with pencil and paper",
        rows=(
            Row(
                mask="1111",
                mu="1/4 1/2 2/5 1/5",
                old="1/4 1/2 1/2 1/2",
                theta="1/2 1/4 1/2 5/8",
                kl="0.16 0.14 0.02 0.4",
                shift="0.1 0.3 0 0.05",
                advantage="1",
                reward=1.0,
            ),
            Row(
                mask="1111",
                mu="1/2 1/2 4/5 1/4",
                old="1/5 1/2 3/5 5/8",
                theta="1/10 5/8 1/2 9/16",
                kl="0.51 0.03 0.2 0.22",
                shift="0.4 0.02 0.01 0",
                advantage="-1",
                reward=0.0,
            ),
            Row(
                mask="1100",
                mu="1/2 2/5 99 99",
                old="1/2 3/8 99 99",
                theta="9/16 3/8 99 99",
                kl="0.01 0.002 99 99",
                shift="0.01 0.02 99 99",
                advantage="1/2",
                reward=0.75,
            ),
            Row(
                mask="1011",
                mu="4/5 99 1/2 1/2",
                old="9/10 99 1/2 7/16",
                theta="3/4 99 1/2 3/8",
                kl="0.008 99 0 0.03",
                shift="0.25 99 0 0.12",
                advantage="-1/2",
                reward=0.25,
            ),
        ),
    ),
    Case(
        name="masks",
        about="Prompt tokens before, tokens of an environment between, padding behind; a response of one token",
        rows=(
            Row(
                mask="0011011",
                mu="99 99 0.42 0.91 99 0.33 0.77",
                old="99 99 0.45 0.93 99 0.31 0.78",
                theta="99 99 0.51 0.88 99 0.44 0.71",
                kl="99 99 0.017 0.009 99 0.026 0.011",
                shift="99 99 0.03 0.11 99 0.2 0.04",
                advantage="0.8",
                reward=1.0,
            ),
            Row(
                mask="1110000",
                mu="0.62 0.17 0.55 99 99 99 99",
                old="0.6 0.2 0.57 99 99 99 99",
                theta="0.41 0.28 0.5 99 99 99 99",
                kl="0.092 0.035 0.004 99 99 99 99",
                shift="0.4 0.31 0.02 99 99 99 99",
                advantage="-1.3",
                reward=-0.5,
            ),
            Row(
                mask="0000001",
                mu="99 99 99 99 99 99 0.36",
                old="99 99 99 99 99 99 0.3",
                theta="99 99 99 99 99 99 0.45",
                kl="99 99 99 99 99 99 0.018",
                shift="99 99 99 99 99 99 0.07",
                advantage="0.5",
                reward=0.6,
            ),
            Row(
                mask="0101010",
                mu="99 0.9 99 0.08 99 0.64 99",
                old="99 0.85 99 0.11 99 0.6 99",
                theta="99 0.95 99 0.04 99 0.69 99",
                kl="99 0.021 99 0.028 99 0.006 99",
                shift="99 0.1 99 0.15 99 0.01 99",
                advantage="-0.4",
                reward=0.1,
            ),
        ),
    ),
    Case(
        name="identical",
        about="Three policies that agree: every ratio is 1, nothing is clipped, and an advantage may be 0",
        rows=(
            Row(
                mask="111",
                mu="0.3 0.6 0.9",
                old="0.3 0.6 0.9",
                theta="0.3 0.6 0.9",
                kl="0 0 0",
                shift="0 0 0",
                advantage="1.5",
                reward=1.0,
            ),
            Row(
                mask="110",
                mu="0.5 0.25 99",
                old="0.5 0.25 99",
                theta="0.5 0.25 99",
                kl="0 0 99",
                shift="0 0 99",
                advantage="0",
                reward=0.5,
            ),
            Row(
                mask="111",
                mu="0.8 0.45 0.7",
                old="0.8 0.45 0.7",
                theta="0.8 0.45 0.7",
                kl="0 0 0",
                shift="0 0 0",
                advantage="-0.75",
                reward=0.0,
            ),
        ),
    ),
    Case(
        name="empty_response",
        about="A response without a token stays in the batch that is averaged over, and has no weight",
        rows=(
            Row(
                mask="1110",
                mu="0.4 0.7 0.52 99",
                old="0.43 0.69 0.5 99",
                theta="0.3 0.75 0.66 99",
                kl="0.021 0.006 0.04 99",
                shift="0.08 0.02 0.15 99",
                advantage="0.6",
                reward=0.9,
            ),
            Row(
                mask="0000",
                mu="99 99 99 99",
                old="99 99 99 99",
                theta="99 99 99 99",
                kl="99 99 99 99",
                shift="99 99 99 99",
                advantage="-1",
                reward=0.0,
            ),
            Row(
                mask="0110",
                mu="99 0.58 0.24 99",
                old="99 0.61 0.22 99",
                theta="99 0.47 0.35 99",
                kl="99 0.024 0.03 99",
                shift="99 0.12 0.06 99",
                advantage="0.4",
                reward=0.4,
            ),
        ),
    ),
    Case(
        name="impossible_token",
        about="π_θ gives a sampled token no probability: log-prob -inf, ratio 0, no score",
        rows=(
            Row(
                mask="1111",
                mu="0.35 0.5 0.66 0.48",
                old="0.33 0.52 0.6 0.5",
                theta="0.4 0 0.7 0.55",
                kl="0.006 0.3 0.004 0.01",
                shift="0.01 0.5 0.02 0.03",
                advantage="0.9",
                reward=1.0,
            ),
            Row(
                mask="1111",
                mu="0.2 0.71 0.53 0.9",
                old="0.22 0.7 0.55 0.88",
                theta="0.25 0.64 0 0.93",
                kl="0.007 0.012 0.4 0.006",
                shift="0.02 0.05 0.6 0.01",
                advantage="-0.7",
                reward=0.2,
            ),
            Row(
                mask="1110",
                mu="0.46 0.81 0.3 99",
                old="0.44 0.8 0.33 99",
                theta="0.5 0.76 0.36 99",
                kl="0.003 0.008 0.009 99",
                shift="0.01 0.03 0.02 99",
                advantage="0.2",
                reward=0.5,
            ),
        ),
    ),
    Case(
        name="extremes",
        about="Ratios from 1e-9 to 1e7, probabilities of nearly 0 and of nearly 1, a product past exp(20)",
        rows=(
            Row(
                mask="1111",
                mu="1e-7 0.5 0.999999 0.2",
                old="0.9 0.4 0.9999995 0.21",
                theta="0.95 0.3 0.9999999 0.26",
                kl="3 0.09 1e-7 0.011",
                shift="2 0.1 0 0.04",
                advantage="2",
                reward=0.0,
            ),
            Row(
                mask="1111",
                mu="0.999 0.7 0.05 0.6",
                old="1e-8 0.72 0.06 0.58",
                theta="1e-9 0.66 0.09 0.51",
                kl="18 0.004 0.02 0.017",
                shift="7 0.01 0.06 0.03",
                advantage="-0.1",
                reward=-2.0,
            ),
            Row(
                mask="1111",
                mu="1e-6 1e-6 0.03 0.98",
                old="0.8 0.6 0.2 0.97",
                theta="0.99 0.9 0.8 0.985",
                kl="6 5 2 0.0004",
                shift="3 1 0.5 0.001",
                advantage="-3",
                reward=3.0,
            ),
            Row(
                mask="1110",
                mu="0.6 1e-12 0.4 99",
                old="0.61 2e-12 0.42 99",
                theta="0.55 1.3e-12 0.37 99",
                kl="0.005 0.012 0.002 99",
                shift="0.02 0.01 0.01 99",
                advantage="0.7",
                reward=0.5,
            ),
        ),
    ),
    Case(
        name="long",
        about="80 tokens: products of many ratios near 1 that are large or small, and one that is past exp(20)",
        rows=(
            Row(
                mask="1" * 80,
                mu="0.5 0.62 0.41 0.73 " * 20,
                old="0.51 0.6 0.42 0.74 " * 20,
                theta="0.66 0.79 0.55 0.93 " * 20,
                kl="0.053 0.07 0.04 0.15 " * 20,
                shift="0.02 0.05 0.01 0.03 " * 20,
                advantage="0.25",
                reward=1.0,
            ),
            Row(
                mask="0" * 8 + "1" * 60 + "0" * 12,
                mu="99 " * 8 + "0.66 0.35 0.8 0.57 0.93 " * 12 + "99 " * 12,
                old="99 " * 8 + "0.64 0.36 0.79 0.57 0.94 " * 12 + "99 " * 12,
                theta="99 " * 8 + "0.55 0.29 0.74 0.5 0.91 " * 12 + "99 " * 12,
                kl="99 " * 8 + "0.026 0.008 0.01 0.01 0.003 " * 12 + "99 " * 12,
                shift="99 " * 8 + "0.04 0.06 0.02 0.01 0 " * 12 + "99 " * 12,
                advantage="-0.5",
                reward=0.0,
            ),
        ),
    ),
    Case(
        name="token_advantages",
        about="An advantage of every token, as a critic gives it, whose sign changes inside a response",
        rows=(
            Row(
                mask="0111",
                mu="99 0.37 0.61 0.5",
                old="99 0.39 0.58 0.52",
                theta="99 0.5 0.43 0.57",
                kl="99 0.035 0.065 0.01",
                shift="99 0.1 0.2 0.02",
                advantage="99 0.6 -0.2 1.1",
                reward=1.0,
            ),
            Row(
                mask="1101",
                mu="0.74 0.21 99 0.88",
                old="0.75 0.2 99 0.86",
                theta="0.81 0.13 99 0.8",
                kl="0.014 0.022 99 0.027",
                shift="0.05 0.14 99 0.09",
                advantage="-0.3 0.4 99 -0.9",
                reward=0.3,
            ),
        ),
    ),
    Case(
        name="one_token",
        about="The smallest batch there is",
        rows=(
            Row(
                mask="1",
                mu="0.4",
                old="0.44",
                theta="0.58",
                kl="0.066",
                shift="0.03",
                advantage="1",
                reward=1.0,
            ),
        ),
    ),
)
