"""The sampling mask of the rollout engine in both engines: top-p, top-k, min-p (`sim.model.truncation`).

    p'(a|c) = p(a|c) / Σ_{b kept by μ_old at c} p(b|c) on kept tokens

The set is μ_old's, and π is renormalised over the same one, so that a ratio compares two distributions over the same
tokens; of a low `min_p` this is vocabulary pruning (arXiv 2512.23087). Where the mask is ignored π keeps all tokens:
some of them μ_old never samples, E_μ[ρ] = 1 - the mass of these, and no weight is unbiased.

Shapes: M members, N contexts, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firstorder.sim.model.truncation import FLOOR, restricted

from .edges import Pass


@dataclass(frozen=True, kw_only=True)
class Mask:
    """What μ_old samples from, and what π is over all tokens.

    Args:
        keep: bool `[M, N, V]`, True on kept tokens.
        replayed: π is renormalised over them.
        whole: π_θ with live routes over all tokens.
        outside: `[M, N]`, the mass of π_old with live routes on what is left out.
    """

    keep: Tensor
    replayed: bool
    whole: Pass
    outside: Tensor

    def met(self, logp: Tensor) -> Tensor:
        """Log-probs of π as samples of μ_old meet them: what is left out never comes, and has μ_old's own `FLOOR`, a
        ratio of 1 that a chance of 0 is multiplied by."""
        return logp if self.replayed else torch.where(self.keep, logp, FLOOR)


def pruned(found: Pass, keep: Tensor | None) -> Pass:
    """A pass renormalised over the tokens of `keep`; what is left out has `FLOOR` and no gradient, in every engine."""
    return found if keep is None else replace(found, logp=restricted(found.logp, keep))


def outside(logp: Tensor, keep: Tensor) -> Tensor:
    """The mass of log-probs `[M, N, V]` on what is left out, `[M, N]`."""
    return torch.where(keep, 0.0, logp.detach().exp()).sum(-1)
