"""The largest advantages of a policy over all steps, contexts and tokens, which some bounds read.

Shapes: M members, N contexts (S of a graph), V vocabulary, U places a context's tokens lead to, T horizon, R = M S.

On a graph a context has an advantage at every step, and all steps are looked at, those included at which no response
comes to it: what is found is then at least what a tree of the same policy says.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from firstorder.sim.tasks import recursion
from firstorder.sim.tasks.recursion import CACHED, Array

from . import levels
from .graph import Graph
from .tree import Tree
from .world import World


def extremes(world: World, mu: Tensor, pi: Tensor) -> tuple[Tensor, Tensor]:
    """max |A^μ_t(c, a)| and max |Σ_a π(a|c) A^μ_t(c, a)| of two policies `[M, N, V]`, `[M]` each."""
    if isinstance(world, Graph):
        return _of_graph(world, mu, pi)
    assert isinstance(world, Tree)
    ends, shape = world.shape.terminal, world.shape
    worth = torch.where(ends >= 0, world.levels[ends.clamp(min=0)], 0.0)
    ahead = torch.cat(levels.ahead(shape, mu, worth[None, None])[0], dim=2)[:, 0]
    advantage = ahead - (mu * ahead).sum(-1, keepdim=True)
    return advantage.abs().amax((-2, -1)), (pi * advantage).sum(-1).abs().amax(-1)


def _of_graph(graph: Graph, mu: Tensor, pi: Tensor) -> tuple[Tensor, Tensor]:
    """The same, backwards step by step; values of contexts and endings stand side by side: a branch is a place."""
    members, rewards, branches = len(mu), graph.table.rewards, graph.branches
    place, spoken = branches.place.numpy(), branches.collapse(pi).numpy()
    endings = np.broadcast_to(rewards[graph.contexts :].numpy(), (members, branches.endings))
    advantage, drift = (np.zeros(members) for _ in range(2))
    for now, after in _values(graph, mu):
        block = (len(now), members)
        known = np.concatenate(
            [after.reshape(*block, -1), np.broadcast_to(endings, (*block, branches.endings))], axis=2
        )
        gained = known[:, :, place] - now.reshape(*block, -1, 1)
        advantage = np.maximum(advantage, np.abs(gained).max((0, 2, 3)))
        drift = np.maximum(drift, np.abs((spoken * gained).sum(-1)).max((0, 2)))
    return torch.from_numpy(advantage), torch.from_numpy(drift)


def _values(graph: Graph, kernel: Tensor) -> Iterator[tuple[Array, Array]]:
    """B_t and B_{t+1} of so many steps as a cache holds, `[k, R]` each, from the last step down."""
    members, rewards = len(kernel), graph.table.rewards
    walk = recursion.walk(graph.branches.collapse(kernel), graph.branches)
    cut, ends = (x.repeat(members, 1).numpy() for x in (rewards[: graph.contexts], rewards[graph.contexts :]))
    after = cut.ravel()
    gained = walk.gained(np.repeat(ends, graph.contexts, axis=0)[None])
    size, kept = max(1, CACHED // len(after)), [after]
    with recursion.flushed():
        steps = range(1, graph.horizon + 1)
        for value in recursion.backward(walk.step(), steps, after, gained, np.ones(graph.horizon + 1)):
            kept.append(value)
            if len(kept) > size:
                yield np.stack(kept[1:]), np.stack(kept[:-1])
                kept = kept[-1:]
    if len(kept) > 1:
        yield np.stack(kept[1:]), np.stack(kept[:-1])
