"""The sums of the graph by doubling, where every prompt has contexts of its own and few of them.

They are those of the recursions over time in another order of summation; see `doubling` for the identities. A worth
that depends on the length, and another kernel right after an edge, have no such form.

Shapes: M members, S contexts, E endings, X prompts, n reward levels, k kinds, b = M X blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from firstorder.sim.tasks import doubling
from firstorder.sim.tasks.contexts import Contexts
from firstorder.sim.tasks.doubling import Blocks
from firstorder.sim.tasks.recursion import flushed


@dataclass(frozen=True, kw_only=True)
class BlockSums:
    """The sums of `World` that are made by doubling; kernels are `[M, S, V]`.

    Args:
        table: the contexts and where tokens lead.
        blocks: the contexts of each prompt.
        horizon: T.
    """

    table: Contexts
    blocks: Blocks
    horizon: int

    @property
    def _prompts(self) -> int:
        return len(self.table.start)

    def earned(self, kernel: Tensor) -> Tensor:
        """`World.earned`."""
        members, levels = len(kernel), len(self.table.levels)
        worth = one_hot(self.table.level, levels).double().T[:, :, None].expand(members, -1, -1, self._prompts)
        with flushed():
            values = doubling.ahead(self._matrices(kernel), self._of_blocks(worth).transpose(1, 2), self.horizon)
        values = values.view(members, self._prompts, self.blocks.places, levels)
        return values[:, torch.arange(self._prompts), self._start].transpose(1, 2)

    def through(self, before: Tensor, after: Tensor, worth: Tensor) -> Tensor:
        """`World.through`."""
        members, size = len(worth), self.blocks.size
        first = self._matrices(before)
        second = first if after is before else self._matrices(after)
        of_places = self._of_blocks(worth[:, :, self.table.level])
        with flushed():
            found = doubling.between(
                first[:, :size, :size], second, self._first(members)[:, :size], of_places, self.horizon
            )
        which = self.table.branches.which.expand(*worth.shape[:2], -1, -1)
        return self.blocks.on_branches(found, members).gather(3, which)

    def visits(self, kernel: Tensor, steps: int) -> Tensor:
        """How often a response comes to each context in so many steps, `[M, S]`."""
        members, size = len(kernel), self.blocks.size
        if not steps:
            return torch.zeros(kernel.shape[:2], dtype=torch.float64)
        with flushed():
            inside = self._matrices(kernel)[:, :size, :size]
            return doubling.came(inside, self._first(members)[:, :size], steps).view(members, -1)

    def log_mass(self, kernel: Tensor) -> Tensor:
        """`World.log_mass`."""
        found = doubling.log_ahead(self._matrices(kernel), self._first(len(kernel)), self.horizon)
        return found.view(len(kernel), -1).logsumexp(-1)

    def _matrices(self, kernel: Tensor) -> Tensor:
        return self.blocks.matrices(self.table.branches.collapse(kernel))

    @property
    def _start(self) -> Tensor:
        """Where each prompt starts in its block, int64 `[X]`."""
        return self.table.start % self.blocks.size

    def _first(self, members: int) -> Tensor:
        """d_1, prompts equally likely, `[b, n + E]`."""
        first = torch.zeros(self._prompts, self.blocks.places, dtype=torch.float64)
        first[torch.arange(self._prompts), self._start] = 1.0 / self._prompts
        return first.repeat(members, 1)

    def _of_blocks(self, worth: Tensor) -> Tensor:
        """What places are worth to every prompt, `[M, k, S + E, X]`, of each block's own, `[b, k, n + E]`."""
        contexts, each = len(self.table.features), torch.arange(self._prompts)
        apart = worth[:, :, :contexts].reshape(*worth.shape[:2], self._prompts, self.blocks.size, self._prompts)
        inside = apart[:, :, each, :, each].transpose(0, 1)  # [X, M, k, n] before
        ends = worth[:, :, contexts:].permute(0, 3, 1, 2)
        return torch.cat([inside, ends], dim=-1).flatten(0, 1)


def block_sums(table: Contexts, horizon: int) -> BlockSums | None:
    """The sums of a table, where its prompts have contexts of their own and doubling is faster; else None."""
    where, prompts = table.branches, len(table.start)
    blocks = doubling.blocks(where.place, prompts, where.contexts, where.endings, horizon)
    if blocks is None or not torch.equal(table.start // blocks.size, torch.arange(prompts)):
        return None
    return BlockSums(table=table, blocks=blocks, horizon=horizon)
