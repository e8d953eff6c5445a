"""Routes that the rollout engine does not send: rows at random, and those of the first tokens of a prompt.

    missing(c) = [u(c) < share],      u(c) uniform in (0, 1), a hash of the context

so that which rows are missing is a function of the context, as noise and routes are, and a policy that replays the
others is one on all contexts. Whatever is missing is missing in every layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import noise

SALT = 5  # keeps these random numbers apart from those of weights, samples and readings


def missing(keys: Tensor, share: float) -> Tensor:
    """Whether the row of each context is missing, bool, of hash keys int64 of the same shape.

    Example:
        >>> missing(torch.arange(1000), 0.0).any().item()
        False
    """
    return noise.uniform(noise.combine(keys, SALT)) < share


def without(ids: Tensor, gone: Tensor) -> Tensor:
    """Experts `[..., L, K]` with -1 in the rows that are gone, bool `[...]`."""
    return torch.where(gone[..., None, None], -1, ids)
