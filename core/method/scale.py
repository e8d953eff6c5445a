"""Scales: what the whole batch of a rollout makes of the advantages, once each has its baseline.

    A ← (A - shift) / spread

with two numbers of a batch. Of ever larger batches they are those of the distribution, which the simulator has.

Shapes: `...` any leading axes (an ensemble), B responses, L positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .advantage import STD_EPSILON
from .sections import Advantage

VAR_EPSILON = 1e-8  # added to the variance of what is whitened, as verl does
ROUNDING = 64 * torch.finfo(torch.float64).eps  # of a root mean square: a smaller mean is what rounding leaves of 0


@dataclass(frozen=True, kw_only=True)
class Affine:
    """(a - shift) / spread; both `[...]`, one number a batch."""

    shift: Tensor
    spread: Tensor

    def __call__(self, a: Tensor) -> Tensor:
        """Advantages `[..., *]` of batches `[...]`."""
        shift, spread = (x.reshape(*x.shape, *[1] * (a.ndim - x.ndim)) for x in (self.shift, self.spread))
        return ((a - shift) / spread).to(a.dtype)


def none(a: Tensor, rewards: Tensor, mask: Tensor) -> Affine:
    """A as it is."""
    return Affine(shift=a.new_zeros(mask.shape[:-2]), spread=a.new_ones(mask.shape[:-2]))


def batch_std(a: Tensor, rewards: Tensor, mask: Tensor) -> Affine:
    """The sample standard deviation of the batch's rewards, plus 1e-6; one response has none."""
    r = rewards.double()
    spread = r.std(-1, correction=1) if r.shape[-1] > 1 else r.new_zeros(r.shape[:-1])
    return Affine(shift=torch.zeros_like(spread), spread=of_rewards(spread))


def of_rewards(std: Tensor) -> Tensor:
    """What a standard deviation of rewards divides by."""
    return std + STD_EPSILON


def whiten(a: Tensor, rewards: Tensor, mask: Tensor) -> Affine:
    """Mean and sample standard deviation of A over the response tokens of the batch, long responses counting by each
    (REINFORCE++, arXiv 2501.03262, as verl and OpenRLHF have it)."""
    each = (a if a.ndim == mask.ndim else a[..., None]).double()
    tokens = mask.sum((-2, -1))
    on = torch.where(mask, each, 0.0)
    mean, square = (x.sum((-2, -1)) / tokens.clamp(min=1) for x in (on, on.square()))
    mean = settled(mean, square)
    apart = torch.where(mask, each - mean[..., None, None], 0.0)
    return Affine(shift=mean, spread=of_tokens(apart.square().sum((-2, -1)) / (tokens - 1).clamp(min=1)))


def settled(mean: Tensor, square: Tensor) -> Tensor:
    """A mean of advantages beside the mean of their squares, 0 where it is no more than rounding: a response whose
    advantage is 0 would take a sign from it."""
    return torch.where(mean.abs() <= ROUNDING * square.sqrt(), 0.0, mean)


def of_tokens(variance: Tensor) -> Tensor:
    """What a variance of tokens' advantages divides by."""
    return (variance + VAR_EPSILON).sqrt()


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Affine]] = {
    "none": none,
    "batch_std": batch_std,
    "whiten": whiten,
}


def scaled(a: Tensor, rewards: Tensor, mask: Tensor, rule: Advantage) -> Tensor:
    """The advantages of a batch after its scale.

    Args:
        a: `[..., B]`, or `[..., B, L]` where every token has its own.
        rewards: `[..., B]`.
        mask: bool `[..., B, L]`, True on response tokens.
        rule: names the scale.

    Example:
        >>> a, mask = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([[True, True], [True, False], [True, False]])
        >>> found = scaled(a, a, mask, Advantage(baseline="none", scale="whiten"))
        >>> tuple(round(x, 3) for x in found.tolist())
        (0.866, -0.866, -0.866)
    """
    if rule.scale == "none":
        return a
    made = FUNCTIONS[rule.scale](a, rewards, mask)(a)
    return made if a.ndim < mask.ndim else torch.where(mask, made, 0.0)
