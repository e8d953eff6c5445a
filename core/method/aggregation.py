"""Aggregation: what a token's weight is divided by, so that responses of any length can be averaged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .sections import Aggregation
from .stats import TokenStats


def token_sum(stats: TokenStats, rule: Aggregation) -> Tensor:
    """1: responses count by the sum over their tokens."""
    return _each_response(stats, 1.0)


def length(stats: TokenStats, rule: Aggregation) -> Tensor:
    """|y|^α."""
    return stats.lengths.to(stats.logp_theta)[..., None] ** rule.alpha


def token_mean(stats: TokenStats, rule: Aggregation) -> Tensor:
    """The mean length under the batch's measure: responses are averaged, so that the batch's sum is divided by its
    token count."""
    mean = (stats.weights * stats.mask.sum(-1)).sum(-1, keepdim=True)
    return torch.where(mean > 0, mean, 1.0)[..., None]  # a batch without tokens has no weights to divide


def constant(stats: TokenStats, rule: Aggregation) -> Tensor:
    """The same number for every token."""
    return _each_response(stats, rule.constant)


FUNCTIONS: dict[str, Callable[[TokenStats, Aggregation], Tensor]] = {
    "token_sum": token_sum,
    "length": length,
    "token_mean": token_mean,
    "constant": constant,
}


def normaliser(stats: TokenStats, rule: Aggregation) -> Tensor:
    """What the weight of a token is divided by; broadcasts over `[..., B, T]`."""
    return FUNCTIONS[rule.kind](stats, rule)


def _each_response(stats: TokenStats, value: float) -> Tensor:
    return torch.full_like(stats.lengths.to(stats.logp_theta), value)[..., None]
