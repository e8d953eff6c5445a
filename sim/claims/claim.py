"""What a claim is: a statement with its source, a rule fixed in code, and an outcome computed by this package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from firstorder.sim.trials.budget import Budget, Verdict

Kind = Literal["theorem", "empirical"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A verdict, its numbers in one phrase, and all the numbers behind it."""

    verdict: Verdict
    headline: str
    measured: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim.

    Args:
        id: what `--only` takes.
        statement: one sentence.
        source: paper and equation or section.
        kind: a theorem must hold; an empirical claim gets a verdict.
        rule: how the verdict follows from the numbers.
        check: computes the outcome within a budget.
    """

    id: str
    statement: str
    source: str
    kind: Kind
    rule: str
    check: Callable[[Budget], Outcome]


EXACT = 1e-10  # relative deviation up to which a theorem in float64 holds


def theorem(deviations: dict[str, float], **more: Any) -> Outcome:
    """The outcome of a theorem from relative deviations of its two sides."""
    worst = float(np.max(list(deviations.values())))  # unlike max(), NaN wins, and fails
    verdict: Verdict = "holds" if worst <= EXACT else "fails"
    return Outcome(
        verdict=verdict, headline=f"largest deviation {worst:.1e}", measured={"deviation": deviations, **more}
    )
