"""Settling claims, in as many processes of one thread as there are cores.

The outcome is the same to the last digit in any number of processes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from firstorder.core import progress
from firstorder.core.threads import threads
from firstorder.sim.sweep.pool import Executor, open_executor, run_all
from firstorder.sim.trials.budget import Budget

from . import CLAIMS
from .claim import Claim, Outcome

PEAK = 3 << 29  # bytes of a process that settles the largest claim


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A claim with its outcome, and the seconds that it took."""

    claim: Claim
    outcome: Outcome
    seconds: float

    def json(self) -> dict[str, Any]:
        """As the document of `firstorder validate` holds it."""
        return {
            "id": self.claim.id,
            "statement": self.claim.statement,
            "source": self.claim.source,
            "kind": self.claim.kind,
            "rule": self.claim.rule,
            "verdict": self.outcome.verdict,
            "headline": self.outcome.headline,
            "measured": self.outcome.measured,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, kw_only=True)
class Together:
    """Claims of `CLAIMS`, by their ids, that one process settles one after another; a job of a pool."""

    remedy: ClassVar[str] = "free some memory, or settle fewer claims at once with --only"
    ids: tuple[str, ...]
    budget: Budget

    @property
    def title(self) -> str:
        """Its claim, or the first of them."""
        more = len(self.ids) - 1
        return f"claim {self.ids[0]}" + (f" and {more} more" if more else "")

    def run(self, threads: int) -> list[tuple[Outcome, float]]:
        """The outcome of each and its seconds, on one thread whatever is allowed: what is small loses by more."""
        return [_check(claim, self.budget) for claim in CLAIMS if claim.id in self.ids]

    def split(self) -> list[Together]:
        """One job a claim; none for a single claim."""
        return [replace(self, ids=(each,)) for each in self.ids] if len(self.ids) > 1 else []


def settle(claims: Sequence[Claim], budget: Budget) -> list[Settled]:
    """Check claims of `CLAIMS`, one after another where there is one core or one job, or else in processes.

    Raises:
        WorkerError: the process of a claim was killed at every attempt.
    """
    jobs, executor = _jobs(claims, budget), open_executor("local")
    workers = min(executor.cores, len(jobs), executor.memory // PEAK)
    if workers < 2:
        return here(claims, budget)
    outcomes = _outcomes(jobs, executor, workers, len(claims))
    return [Settled(claim=each, outcome=outcomes[each.id][0], seconds=outcomes[each.id][1]) for each in claims]


def here(claims: Sequence[Claim], budget: Budget) -> list[Settled]:
    """Check claims in this process, one after another."""
    settled = []
    for claim in progress.steps("claims", claims):
        outcome, seconds = _check(claim, budget)
        settled.append(Settled(claim=claim, outcome=outcome, seconds=seconds))
    return settled


def _check(claim: Claim, budget: Budget) -> tuple[Outcome, float]:
    started = time.perf_counter()
    try:
        with threads(0):
            outcome = claim.check(budget)
    except Exception as error:
        error.add_note(f"while claim {claim.id} was settled")
        raise
    return outcome, time.perf_counter() - started


def _jobs(claims: Sequence[Claim], budget: Budget) -> list[Together]:
    """The theorems together, since they look at one scene, and each empirical claim alone."""
    theorems = tuple(claim.id for claim in claims if claim.kind == "theorem")
    shared = [Together(ids=theorems, budget=budget)] if theorems else []
    return [*shared, *(Together(ids=(each.id,), budget=budget) for each in claims if each.kind == "empirical")]


def _outcomes(
    jobs: Sequence[Together], executor: Executor, workers: int, total: int
) -> dict[str, tuple[Outcome, float]]:
    outcomes: dict[str, tuple[Outcome, float]] = {}

    def done(job: Together, result: list[tuple[Outcome, float]]) -> None:
        outcomes.update(zip(job.ids, result, strict=True))
        progress.tell("claims", len(outcomes), total)

    progress.tell("claims", 0, total)
    try:
        executor.start(workers)
        run_all(jobs, executor, done)
    finally:
        executor.close()
    return outcomes
