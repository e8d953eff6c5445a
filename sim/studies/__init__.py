"""Open questions, one module each, answered by runs with a rule that was fixed beforehand."""

from __future__ import annotations

from . import advice, bounds, causes, frontier, regimes, replayed, samples, warnings
from .study import Answer, Plan, Study, plan

STUDIES: tuple[Study, ...] = (
    regimes.STUDY,
    samples.STUDY,
    causes.STUDY,
    warnings.STUDY,
    advice.STUDY,
    frontier.STUDY,
    bounds.STUDY,
    replayed.STUDY,
)

__all__ = ["STUDIES", "Answer", "Plan", "Study", "plan"]
