"""How much is spent on settling something, and how it can end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Verdict = Literal["holds", "fails", "reproduced", "not reproduced", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much is spent on a claim.

    Args:
        policies: random policies, the units of every interval.
        draws: perturbation draws of each policy.
        first_seed: seeds of the policies count up from here.
        folder: where training runs are kept, and found again; None for nowhere.
    """

    policies: int
    draws: int
    first_seed: int
    folder: Path | None = None


# Settings and rules were chosen on seeds below 1000; these are the seeds that verdicts are reported on.
FULL = Budget(policies=48, draws=2, first_seed=1000)
QUICK = Budget(policies=12, draws=1, first_seed=1000)
