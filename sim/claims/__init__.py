"""The paper's claims, each with the code that settles it."""

from . import ablations, crossover, identities, order, targets
from .claim import FULL, QUICK, Budget, Claim, Outcome

CLAIMS: tuple[Claim, ...] = (
    *identities.CLAIMS,
    *targets.CLAIMS,
    *order.CLAIMS,
    *crossover.CLAIMS,
    *ablations.CLAIMS,
)

__all__ = ["CLAIMS", "FULL", "QUICK", "Budget", "Claim", "Outcome"]
