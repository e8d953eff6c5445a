"""Did the weights arrive: a rollout engine's log-probs beside the trainer's at the new weights and at the ones before.

    s = Σ_t (log μ - log π_before)(log π_new - log π_before) / Σ_t (log π_new - log π_before)²

is the share of the update that the rollout engine shows: 1 where it holds the new weights, 0 where it still holds the
old ones, whatever the two engines are apart by rounding, which does not know the direction of the update.

Shapes: B responses, L positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from firstorder.core.errors import DataError

WIDTH = 4.0  # standard errors of s that an interval reaches to either side: 6e-5 of a normal distribution
FEW = 8  # responses below which a spread between them says nothing
NARROW = 0.5  # half width of an interval that can tell 1 from 0

State = Literal["arrived", "old", "part", "neither", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """Whether a weight sync reached the rollout engine.

    Args:
        state: `arrived`; `old`, it still holds the weights before; `part`, some of the update is missing; `neither`, it
            is far from both; `unknown`, the update is too small beside what the engines differ by, or the batch is.
        share: s, of the update.
        half: half the width of its interval.
        apart: mean |log μ - log π_new|, nats.
        moved: mean |log π_new - log π_before|, nats.
        line: for people.
    """

    state: State
    share: float
    half: float
    apart: float
    moved: float
    line: str

    @property
    def passed(self) -> bool:
        """Nothing speaks against it."""
        return self.state in ("arrived", "unknown")

    def require(self) -> None:
        """Stop unless it passed.

        Raises:
            DataError: with the line.
        """
        if not self.passed:
            raise DataError(self.line)


def check_arrival(*, mask: Tensor, logp_mu: Tensor, new: Tensor, before: Tensor, limit: float) -> Arrival:
    """Which weights a rollout engine holds, by one batch that all three have scored.

    Args:
        mask: bool `[B, L]`, the tokens that count.
        logp_mu: `[B, L]` nats, of the rollout engine after the sync.
        new: `[B, L]` nats, of the trainer at the weights that were sent.
        before: `[B, L]` nats, of the trainer at those before.
        limit: largest mean |log μ - log π| of engines with the same weights, nats a token.

    Raises:
        DataError: there is nothing to compare.
    """
    known = mask & logp_mu.isfinite() & new.isfinite() & before.isfinite()
    if not known.any():
        raise DataError("no token has a finite log-prob of all three; give a batch that all have scored")
    step, off = (torch.where(known, x.double() - before.double(), 0.0) for x in (new, logp_mu))
    count = int(known.sum())
    apart, moved = (float(x.abs().sum()) / count for x in (off - step, step))
    share, half = _regression(off, step)
    nearest = min(apart, float(off.abs().sum()) / count)
    state = _state(share, half, nearest > limit)
    return Arrival(
        state=state, share=share, half=half, apart=apart, moved=moved, line=_line(state, share, half, apart, moved)
    )


def _regression(off: Tensor, step: Tensor) -> tuple[float, float]:
    """s and half its interval, from the spread of the responses about it; infinite where nothing moved."""
    square = float(step.square().sum())
    if square == 0 or len(step) < FEW:
        return (0.0, math.inf) if square == 0 else (float((off * step).sum()) / square, math.inf)
    share = float((off * step).sum()) / square
    left = ((off - share * step) * step).sum(-1)
    return share, WIDTH * math.sqrt(float(left.square().sum())) / square


def _state(share: float, half: float, far: bool) -> State:
    if half > NARROW:
        return "neither" if far else "unknown"
    if far:
        return "neither"
    if abs(share - 1) <= half:
        return "arrived"
    return "old" if abs(share) <= half else "part"


def _line(state: State, share: float, half: float, apart: float, moved: float) -> str:
    seen = f"the update moved log-probs by {moved:.2g} nats a token, the engines are {apart:.2g} apart"
    told = f"{share:.2f} ± {half:.2f} of the update shows"
    return {
        "arrived": f"the weights arrived: {told}; {seen}",
        "old": f"still the old weights: {told}; {seen}; see whether the sync was called, and with which tensors",
        "part": f"a part of the update is missing: {told}; {seen}; see which tensors are sent, and in which precision",
        "neither": f"neither the new weights nor the old ones: {seen}; see names, shards and layouts of what is sent",
        "unknown": f"cannot be told: {seen}; take more responses, or ask after a larger update",
    }[state]
