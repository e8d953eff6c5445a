"""The paper's claims, each with the code that settles it."""

from firstorder.sim.trials.budget import FULL, QUICK, Budget

from . import ablations, crossover, drift, identities, order, parts, targets, worlds
from .claim import Claim, Outcome

CLAIMS: tuple[Claim, ...] = (
    *identities.CLAIMS,
    *targets.CLAIMS,
    *parts.CLAIMS,
    *worlds.CLAIMS,
    *drift.CLAIMS,
    *order.CLAIMS,
    *crossover.CLAIMS,
    *ablations.CLAIMS,
)

__all__ = ["CLAIMS", "FULL", "QUICK", "Budget", "Claim", "Outcome"]
