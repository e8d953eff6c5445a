"""When a training run has collapsed: it had learnt something, lost half of it and did not get it back."""

from __future__ import annotations

import torch
from torch import Tensor

RISE = 0.2  # of reward: what a run must have gained before there is anything to lose
KEPT = 0.5  # share of the gain below which it counts as lost
PATIENCE = 3  # evaluations in a row


def onset(objective: Tensor, *, rise: float = RISE, kept: float = KEPT, patience: int = PATIENCE) -> Tensor:
    """The evaluation at which each run collapsed, -1 where it did not.

    With J_0 the first value and P_t = max_{s<=t} J_s, a run is down at t if P_t - J_0 >= rise and
    J_t < J_0 + kept · (P_t - J_0). It collapsed at the first t from which it is down `patience` times in a row.

    Args:
        objective: `[..., K]`, J of a run at K evaluations, the first one before any update.
        rise: smallest gain that can be lost, in units of reward.
        kept: share of the gain that must be kept.
        patience: evaluations in a row, at least 1.

    Returns:
        int64 `[...]`.

    Example:
        >>> onset(torch.tensor([0.1, 0.5, 0.9, 0.4, 0.3, 0.2]))
        tensor(3)
    """
    start = objective[..., :1]
    gain = objective.cummax(-1).values - start
    down = (gain >= rise) & (objective < start + kept * gain)
    if objective.shape[-1] < patience:
        return torch.full(objective.shape[:-1], -1)
    run = down.unfold(-1, patience, 1).all(-1)
    return torch.where(run.any(-1), run.int().argmax(-1), -1)


def collapsed(objective: Tensor) -> Tensor:
    """Whether each run collapsed, bool `[...]`; see `onset`."""
    return onset(objective) >= 0
