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


def prompts(sim: Sim) -> tuple[Tensor, Tensor]:
    """The prompts measured and the others, int64 `[P, prompt_length]` each, the same for every seed.

    All (V-1)^prompt_length prompts are put in a fixed pseudo-random order; the first `sim.prompts` are measured and
    up to as many of the rest move θ.
    """
    axis = torch.arange(1, sim.vocab)
    every = torch.cartesian_prod(*[axis] * sim.prompt_length).reshape(-1, sim.prompt_length)
    order = noise.mix(torch.arange(len(every))).argsort()
    ranked = every[order]
    return ranked[: sim.prompts], ranked[sim.prompts : 2 * sim.prompts]


def rewards(sim: Sim, tree: Tree) -> Tensor:
    """Reward of every complete response of the tree, `[B]` in [0, 1]."""
    target = tree.prompts.sum(-1)[tree.prompt]
    gap = (tree.tokens.sum(-1) - target) % sim.vocab
    if sim.reward == "binary":
        earned = (gap == 0).double()
    else:
        earned = 1.0 - torch.minimum(gap, sim.vocab - gap).double() / (sim.vocab // 2)
    return torch.where(tree.cut, 0.0, earned) if sim.truncated == "zero" else earned
