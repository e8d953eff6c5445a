"""Vocabulary pruning: the tail of the rollout engine left out of both engines (arXiv 2512.23087).

    kept(c) = {a: μ(a|c) >= min_p · max_b μ(b|c)},      p'(a|c) = p(a|c) / Σ_{b kept} p(b|c) on kept tokens

The set is μ's, and π is renormalised over the same one, so that a ratio compares two distributions over the same
tokens. Shapes: M members, N contexts, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .edges import Pass

FLOOR = -600.0  # nats, of what is left out: a probability that adds nothing, whose logarithm and square are finite


def kept(logp: Tensor, min_p: float) -> Tensor | None:
    """The tokens that are left of log-probs `[M, N, V]`, bool; None where all are, `min_p` = 0."""
    if not min_p:
        return None
    return logp >= logp.amax(-1, keepdim=True) + math.log(min_p)


def pruned(found: Pass, keep: Tensor | None) -> Pass:
    """A pass renormalised over the tokens of `keep`; what is left out has `FLOOR` and no gradient, in every engine."""
    if keep is None:
        return found
    total = torch.where(keep, found.logp, -torch.inf).logsumexp(-1, keepdim=True)
    return replace(found, logp=torch.where(keep, found.logp - total, FLOOR))
