"""The value of a policy over contexts that merge, by backward recursion.

Shapes: M members, S contexts, V vocabulary, X prompts, U distinct places that a context leads to.

What a response earns on average that has n tokens left and stands at c:

    v_0(c) = cut(c),      v_n(c) = Σ_y π(y|c) · v_{n-1}(follow(c, y)),      J = mean over x of v_T(start(x))

where an ending is worth what it pays, however much is left. A step is one product with a sparse matrix of the
probabilities of going from context to context, tokens that lead to the same place taken together beforehand.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from .contexts import Contexts

EVERY = 64  # steps between looks for numbers too small to matter, which are slow to compute with
NOTHING = 1e-200


def value(logp: Tensor, contexts: Contexts, horizon: int) -> Tensor:
    """J of each member, `[M]`; 0 where it is below 1e-200.

    Args:
        logp: `[M, S, V]` nats, of the next token at each context.
        contexts: where tokens lead and what is earned.
        horizon: T, tokens of the longest response.
    """
    members, size, _ = logp.shape
    mass, places = contexts.branches.mass(logp.exp()), contexts.branches.places
    goes_on = places < size
    pay = torch.cat([torch.zeros(size, dtype=torch.float64), contexts.ends])[places]
    paid = (mass * pay).sum(-1).flatten().numpy()
    step = _matrix(torch.where(goes_on, mass, 0.0), torch.where(goes_on, places, 0))
    worth = contexts.cut.repeat(members).numpy()
    ending = bool(paid.any())
    for left in range(horizon):
        worth = step @ worth
        if ending:
            worth += paid
        elif left % EVERY == 0:
            worth[worth < NOTHING] = 0.0
    return torch.from_numpy(worth).view(members, size)[:, contexts.start].mean(-1)


def _matrix(mass: Tensor, places: Tensor) -> sparse.csr_array:
    """Going from context to context, all members side by side, `[M S, M S]`."""
    members, size, fan = mass.shape
    column = (places + size * torch.arange(members)[:, None, None]).flatten()
    row = torch.arange(members * size).repeat_interleave(fan)
    there = mass.flatten() > 0
    entries = (mass.flatten()[there].numpy(), (row[there].numpy(), column[there].numpy()))
    return sparse.csr_array(sparse.coo_array(entries, shape=(members * size, members * size)), dtype=np.float64)
