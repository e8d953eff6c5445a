"""Advantages: rewards less a baseline taken over the responses of one prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import ConfigError, DataError
from .recipe import Advantage

STD_EPSILON = 1e-6  # added to the standard deviation, as verl does; TRL adds 1e-4


def advantage(rewards: Tensor, rule: Advantage) -> Tensor:
    """A = (R - baseline) / (std + ε) over the last axis, one group of G responses.

    The baseline is 0, the group mean (it includes the response itself, which scales the expected eq. (4) by
    1 - 1/G), or the mean of the other G - 1. The standard deviation is the sample one (G - 1 in the
    denominator); a group whose rewards agree has A = 0.

    Args:
        rewards: `[..., G]`, finite.
        rule: baseline and normalisation.

    Returns:
        `[..., G]`.

    Raises:
        DataError: a reward is NaN or infinite.
        ConfigError: the baseline is no matter of the group.

    Example:
        >>> advantage(torch.tensor([1.0, 0.0, 0.0, 1.0]), Advantage(baseline="group_mean")).tolist()
        [0.5, -0.5, -0.5, 0.5]
    """
    if rule.baseline == "value":
        raise ConfigError("baseline value is learned for every context; make its advantages with core.value.gae")
    if not torch.isfinite(rewards).all():
        raise DataError("`rewards` must be finite, got NaN or infinity; check the verifier of the task")
    size = rewards.shape[-1]
    total = rewards.sum(-1, keepdim=True)
    if rule.baseline == "none":
        centred = rewards
    elif rule.baseline == "group_mean":
        centred = rewards - total / size
    else:
        centred = rewards - (total - rewards) / (size - 1)
    if rule.baseline != "none":
        agree = (rewards == rewards[..., :1]).all(-1, keepdim=True)
        centred = torch.where(agree, 0.0, centred)  # their mean may round, and the spread divides by what is left
    if not rule.std:
        return centred
    return centred / (rewards.std(-1, keepdim=True, correction=1) + STD_EPSILON)
