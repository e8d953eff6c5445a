"""Prompts and verifiable rewards of the simulator.

A prompt is a few tokens; a response answers it if its tokens (the end token counts 0) sum to the prompt's sum
modulo the vocabulary. `binary` pays 1 for that; `graded` pays 1 minus the circular distance over its maximum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import noise
from .config import Sim
from .tree import Tree

RANGE = (0.0, 1.0)  # of a reward


def prompts(sim: Sim) -> tuple[Tensor, Tensor]:
    """The prompts measured and the others, int64 `[P, prompt_length]` each, the same for every seed.

    All (V-1)^prompt_length prompts are put in a fixed pseudo-random order; the first `sim.prompts` are measured and
    up to as many of the rest move θ.
    """
    ranked = _ranked(sim)
    return ranked[: sim.prompts], ranked[sim.prompts : 2 * sim.prompts]


def rewards(sim: Sim, tree: Tree) -> Tensor:
    """Reward of every complete response of the tree, `[B]` in [0, 1]."""
    return verify(sim, tree.prompts[tree.prompt], tree.tokens, tree.mask)


def verify(sim: Sim, prompts: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Reward of responses, `[...]` in [0, 1].

    Args:
        sim: the kind of reward, and what a response cut at the horizon earns.
        prompts: int64 `[..., prompt_length]`.
        tokens: int64 `[..., T]`, 0 off the mask.
        mask: bool `[..., T]`.
    """
    gap = (tokens.sum(-1) - prompts.sum(-1)) % sim.vocab
    if sim.reward == "binary":
        earned = (gap == 0).double()
    else:
        earned = 1.0 - torch.minimum(gap, sim.vocab - gap).double() / (sim.vocab // 2)
    ended = ((tokens == 0) & mask).any(-1)
    return torch.where(ended, earned, 0.0) if sim.truncated == "zero" else earned


def pool(sim: Sim) -> Tensor:
    """The training prompts, int64 `[X, prompt_length]`: the measured ones and the next, up to `sim.pool`."""
    return _ranked(sim)[: max(sim.pool, sim.prompts)]


def picks(pool: Tensor, seeds: Tensor, step: int, count: int) -> Tensor:
    """Which prompts of the pool each member sees at a step, int64 `[M, count]`: shuffled epochs of the pool.

    Args:
        pool: `[X, prompt_length]`.
        seeds: int64 `[M]`.
        step: the global step.
        count: prompts a step.
    """
    size = len(pool)
    place = step * count + torch.arange(count)
    epochs = torch.arange(int(place[0]) // size, int(place[-1]) // size + 1)
    shuffle = noise.combine(noise.mix(seeds)[:, None], -1 - epochs)
    orders = noise.combine(shuffle[..., None], torch.arange(size)).argsort(-1)
    return orders[:, place // size - epochs[0], place % size]


def _ranked(sim: Sim) -> Tensor:
    """All prompts in a fixed pseudo-random order."""
    axis = torch.arange(1, sim.vocab)
    every = torch.cartesian_prod(*[axis] * sim.prompt_length).reshape(-1, sim.prompt_length)
    return every[noise.mix(torch.arange(len(every))).argsort()]
