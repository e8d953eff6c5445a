"""The value of a policy over contexts that merge, by backward recursion; see `recursion`.

Shapes: M members, S contexts, V vocabulary, X prompts.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import recursion
from .contexts import Contexts


def value(logp: Tensor, contexts: Contexts, horizon: int) -> Tensor:
    """J of each member, mean over the prompts, `[M]`.

    Args:
        logp: `[M, S, V]` nats, of the next token at each context.
        contexts: where tokens lead and what is earned.
        horizon: T, tokens of the longest response.
    """
    members, where = len(logp), contexts.branches
    walk = recursion.walk(where.collapse(logp.exp()), where)
    worth = contexts.cut.repeat(members).numpy()
    gained = walk.gained(np.broadcast_to(contexts.ends.numpy(), (1, *walk.ending.shape)))
    with recursion.flushed():
        steps = recursion.backward(walk.step(), range(1, horizon + 1), worth, gained, np.ones(horizon + 1))
        worth = recursion.last(steps, worth)
    return torch.from_numpy(worth).view(members, -1)[:, contexts.start].mean(-1)
