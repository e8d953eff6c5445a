"""Advantages: rewards less a baseline taken over the responses of one prompt."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from firstorder.core.errors import ConfigError, DataError

from .sections import Advantage
from .stats import check_rewards_finite, real

STD_EPSILON = 1e-6  # added to the standard deviation, as verl does; TRL adds 1e-4


def advantage(rewards: Tensor, rule: Advantage) -> Tensor:
    """A = (R - baseline) / (std + ε) over the last axis, one group of G responses.

    The baseline is 0, the group mean (it includes the response itself, which scales the expected eq. (4) by
    1 - 1/G), or the mean of the other G - 1. The standard deviation is the sample one (G - 1 in the
    denominator); a group whose rewards agree, as one response does with itself, has A = 0.

    Args:
        rewards: `[..., G]`, finite; integers, bools and half floats are read as float32.
        rule: baseline and normalisation.

    Returns:
        `[..., G]`.

    Raises:
        DataError: a group is empty, or a reward is NaN, infinite or too large for its dtype.
        ConfigError: the baseline is no matter of the group.

    Example:
        >>> advantage(torch.tensor([1.0, 0.0, 0.0, 1.0]), Advantage(baseline="group_mean")).tolist()
        [0.5, -0.5, -0.5, 0.5]
    """
    if rule.baseline not in FUNCTIONS:
        raise ConfigError(
            f"baseline {rule.baseline} is learned for every context; make its advantages with core.method.value.gae"
        )
    if rule.std and not rule.over_group:
        raise ConfigError(
            f"advantage.std needs a group baseline, got {rule.baseline}; choose group_mean or leave_one_out"
        )
    if 0 in rewards.shape or not rewards.ndim:
        raise DataError(f"`rewards` must be [..., group] with at least one response, got {list(rewards.shape)}")
    check_rewards_finite(rewards)
    centred = _centred(real(rewards), rule)
    if not rule.std:
        return centred
    return centred / (_spread(real(rewards)) + STD_EPSILON)


def no_baseline(rewards: Tensor) -> Tensor:
    """0."""
    return torch.zeros_like(rewards)


def group_mean(rewards: Tensor) -> Tensor:
    """The mean of all G."""
    return _total(rewards) / rewards.shape[-1]


def leave_one_out(rewards: Tensor) -> Tensor:
    """The mean of the other G - 1; of nobody 0."""
    return (_total(rewards) - rewards) / max(rewards.shape[-1] - 1, 1)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": no_baseline,
    "group_mean": group_mean,
    "leave_one_out": leave_one_out,
}
"""The baseline `[..., G]` of each group's rewards; that of `value` is a critic's (`core.method.value`)."""


def _centred(rewards: Tensor, rule: Advantage) -> Tensor:
    """R less its baseline; 0 where a group that it is taken over agrees."""
    centred = rewards - FUNCTIONS[rule.baseline](rewards)
    if not rule.over_group:
        return centred
    agree = (rewards == rewards[..., :1]).all(-1, keepdim=True)
    return torch.where(agree, 0.0, centred)  # their mean may round, and the spread divides by what is left


def _total(rewards: Tensor) -> Tensor:
    total = rewards.sum(-1, keepdim=True)
    _check_size(total, rewards)
    return total


def _spread(rewards: Tensor) -> Tensor:
    """The sample standard deviation of each group, `[..., 1]`; one response has none."""
    if rewards.shape[-1] < 2:
        return torch.zeros_like(rewards)
    spread = rewards.std(-1, keepdim=True, correction=1)
    _check_size(spread, rewards)
    return spread


def _check_size(statistic: Tensor, rewards: Tensor) -> None:
    if not statistic.isfinite().all():
        raise DataError(
            f"`rewards` up to {float(rewards.abs().max()):g} are too large for {rewards.dtype}: the sum or the spread "
            "of a group is infinite; scale them down"
        )
