"""When a training run has collapsed: it had learnt something, lost half of it and did not get it back."""

from __future__ import annotations

import torch
from torch import Tensor

LEARNT = 0.2  # of reward: what a run must have reached before there is anything to lose
KEPT = 0.5  # share of its best below which it counts as lost
PATIENCE = 3  # evaluations in a row


def onset(objective: Tensor, *, learnt: float = LEARNT, kept: float = KEPT, patience: int = PATIENCE) -> Tensor:
    """The evaluation at which each run collapsed, -1 where it did not.

    With P_t = max_{s<=t} J_s a run is down at t if P_t >= learnt and J_t < kept · P_t. It collapsed at the first t from
    which it is down `patience` times in a row.

    Args:
        objective: `[..., K]`, J of a run at K evaluations, in [0, 1].
        learnt: smallest J that can be lost, in units of reward.
        kept: share of the best J that must be kept.
        patience: evaluations in a row, at least 1.

    Returns:
        int64 `[...]`.

    Example:
        >>> onset(torch.tensor([0.1, 0.5, 0.9, 0.4, 0.3, 0.2]))
        tensor(3)
    """
    best = objective.cummax(-1).values
    down = (best >= learnt) & (objective < kept * best)
    if objective.shape[-1] < patience:
        return torch.full(objective.shape[:-1], -1)
    run = down.unfold(-1, patience, 1).all(-1)
    return torch.where(run.any(-1), run.int().argmax(-1), -1)


def collapsed(objective: Tensor) -> Tensor:
    """Whether each run collapsed, bool `[...]`; see `onset`."""
    return onset(objective) >= 0
