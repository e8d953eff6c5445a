"""Numbers that were promised are numbers: what is NaN or infinite ends a measurement or a run, by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .errors import NotFiniteError

UNDEFINED = (
    "rollout_actor_probs_pearson_corr",  # of probabilities that do not vary
    "gate_margin",  # where no expert is left to flip to
    "vf_explained_var",  # of returns that do not vary
    "vf_loss",  # of a member without a critic
    "responses_for_equal_progress",  # where a bias keeps an update from ever getting there
    # relative to a gradient, where a policy that has collapsed has none
    "exact/gradient_error",
    "exact/gradient_error_natural",
    "exact/bias_entropy",
    "exact/bias_cosine",
    "exact/bias_coherence",
)
"""Ends of names whose quantity may have no value, which is null in JSON."""


def check_finite(found: Mapping[str, Any], cause: str) -> None:
    """Refuse results that are NaN or infinite, but for those of `UNDEFINED`.

    Args:
        found: numbers or tensors by name, nested as one likes.
        cause: what may be behind it and what to do.

    Raises:
        NotFiniteError: naming the first.

    Example:
        >>> check_finite({"kl": 0.1, "route": {"gate_margin": float("inf")}}, "lower sim.lr")
    """
    for name, value in _numbers(found):
        if not math.isfinite(value) and not name.endswith(UNDEFINED):
            raise NotFiniteError(f"{name} is {value:g}: {cause}")


def _numbers(found: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number with its name; of a tensor, one that is not finite if there is any."""
    if isinstance(found, Mapping):
        for key, value in found.items():
            yield from _numbers(value, f"{name}/{key}" if name else str(key))
    elif isinstance(found, (list, tuple)):
        for value in found:
            yield from _numbers(value, name)
    elif isinstance(found, torch.Tensor):
        bad = found[~torch.isfinite(found)]
        yield name, float(bad[0]) if bad.numel() else 0.0
    elif isinstance(found, float):
        yield name, found
