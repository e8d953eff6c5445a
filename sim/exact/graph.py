"""The graph: contexts that merge, and responses of any length, summed over by the recursions of `recursion`.

Shapes: M members, S contexts, V vocabulary, T horizon, X prompts, n reward levels, C columns, B responses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from firstorder.sim.model import noise
from firstorder.sim.model.chunks import chunked_step
from firstorder.sim.model.policy import Model, Step
from firstorder.sim.sampling.table import draw
from firstorder.sim.tasks import recursion
from firstorder.sim.tasks.contexts import Contexts
from firstorder.sim.tasks.recursion import After, Array, Branches, Walk, Worth, flushed
from firstorder.sim.tasks.task import SimTask

from .blocks import BlockSums, block_sums
from .edges import Given, Pass, Routes
from .world import Near, Responses, Rows

SALT = 2  # keeps the random numbers of a sample apart from those of weights and rollouts


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A `World` whose contexts merge.

    Args:
        task: what is to be learnt.
        table: the contexts and where tokens lead.
        horizon: T.
        samples: responses to draw of what has no exact form; rounded up to as many for each prompt.
    """

    task: SimTask
    table: Contexts
    horizon: int
    samples: int
    exhaustive = False

    @property
    def prompts(self) -> int:
        """X."""
        return len(self.table.start)

    @property
    def contexts(self) -> int:
        """S."""
        return len(self.table.features)

    @property
    def vocab(self) -> int:
        """V."""
        return int(self.table.follow.shape[1])

    @property
    def levels(self) -> Tensor:
        """The distinct rewards, ascending, `[n]`."""
        return self.table.levels

    @property
    def branches(self) -> Branches:
        """The distinct places that a context's tokens lead to."""
        return self.table.branches

    @cached_property
    def owner(self) -> Tensor | None:
        """The prompt whose responses alone come to each context, int64 `[S]`, 0 where none does; None where prompts
        share a context."""
        shared = bool((self.reachable.sum(0) > 1).any())
        return None if shared else self.reachable.long().argmax(0)

    @cached_property
    def doubled(self) -> BlockSums | None:
        """Sums by doubling over the contexts of each prompt, where that is faster than a recursion over time."""
        return block_sums(self.table, self.horizon)

    @cached_property
    def reachable(self) -> Tensor:
        """Those that some tokens lead to."""
        place = self.branches.place
        inside = place < self.contexts
        origin, target = inside.nonzero()[:, 0], place[inside]
        seen = torch.zeros(self.prompts, self.contexts, dtype=torch.bool)
        seen[torch.arange(self.prompts), self.table.start] = True
        while True:
            ahead = seen.clone()
            ahead.index_put_((torch.arange(self.prompts)[:, None], target), seen[:, origin], accumulate=True)
            if torch.equal(ahead, seen):
                return seen
            seen = ahead

    @property
    def keys(self) -> Routes:
        """`World.keys`."""
        return Routes(contexts=self.table.keys, leads=())

    def run(self, model: Model, replay: Given | None = None) -> Pass:
        """One pass over the rows of the table."""
        step = self._step(model, replay)
        return Pass(
            logp=step.logp,
            routes=Routes(contexts=step.ids, leads=()),
            gates=Routes(contexts=step.gates, leads=()),
            live=Routes(contexts=step.live, leads=()),
            margin=step.margin,
            router_logp=step.router_logp,
        )

    def states(self, model: Model, replay: Given | None = None) -> Tensor:
        """`World.states`."""
        with torch.no_grad():
            return self._step(model, replay).state

    def earned(self, kernel: Tensor, by_length: Tensor | None = None) -> Tensor:
        """`World.earned`."""
        if self.doubled is not None and by_length is None:
            return self.doubled.earned(kernel)
        members, worth, f = len(kernel), self._worth(len(kernel)), self._lengths(by_length)
        walk, count, steps = self._walk(kernel), len(worth.cut), range(1, self.horizon + 1)
        final = worth.cut.ravel() * f[-1]
        with flushed():
            values = recursion.last(
                recursion.backward(walk.step(count), steps, final, walk.gained(worth.ends), f), final
            )
        return torch.from_numpy(values).view(count, members, -1)[..., self.table.start].transpose(0, 1)

    def through(
        self, before: Tensor, after: Tensor, worth: Tensor, by_length: Tensor | None = None, near: Near | None = None
    ) -> Tensor:
        """`World.through`."""
        if self.doubled is not None and by_length is None and near is None:
            return self.doubled.through(before, after, worth)
        members, columns = worth.shape[:2]
        passed = torch.zeros(columns, members * self.contexts, self.branches.place.shape[1], dtype=torch.float64)
        if bool(worth.any()):
            first = self._walk(before)
            far = first if after is before else self._walk(after)
            close = far if near is None else self._walk(near.kernel)
            second = After(far=far, near=close, steps=0 if near is None else near.steps)
            start, kinds, sums = self._together(worth) if self.owner is None else self._apart(worth, self.owner)
            with flushed():
                found = recursion.through(first, second, start, kinds, sums, self._lengths(by_length))
            passed[: len(found)] = torch.from_numpy(found)
        passed = passed.view(columns, members, self.contexts, -1).transpose(0, 1)
        return passed.gather(3, self.branches.which.expand(members, columns, -1, -1))

    def visits(self, kernel: Tensor) -> Tensor:
        """`World.visits`."""
        return self._visits(kernel, self.horizon)

    def _visits(self, kernel: Tensor, steps: int) -> Tensor:
        """How often a response comes to each context in so many steps, `[M, S]`."""
        if self.doubled is not None:
            return self.doubled.visits(kernel, steps)
        total = torch.zeros(len(kernel), self.contexts, dtype=torch.float64)
        for came in self._came(kernel, steps):
            total += came.sum(0)
        return total

    def by_step(self, kernel: Tensor, x: Tensor) -> Tensor:
        """`World.by_step`."""
        return torch.cat([torch.einsum("tms,...ms->...mt", came, x) for came in self._came(kernel)], dim=-1)

    def expansion(self, kernel: Tensor, change: Tensor, order: int) -> Tensor:
        """`World.expansion`."""
        mass, moved = self.branches.collapse(kernel), self.branches.collapse(kernel * change)
        with flushed():
            values = recursion.expansion(mass, moved, self.branches, self.table.rewards, self.horizon, order)
        return values[:, self.table.start].mean(1)

    def squares(self, kernel: Tensor, x: Tensor, by_length: Tensor | None = None) -> Tensor:
        """`World.squares`."""
        mass, once, twice = (self._walk((kernel * factor).expand_as(x)) for factor in (torch.ones(()), x, x.square()))
        with flushed():
            found = recursion.squares(mass, once, twice, self._worth(len(x)), self._lengths(by_length))
        return torch.from_numpy(found).view(len(found), len(x), -1)[..., self.table.start].transpose(0, 1)

    def log_mass(self, kernel: Tensor) -> Tensor:
        """`World.log_mass`."""
        if self.doubled is not None:
            return self.doubled.log_mass(kernel)
        start = self._start(torch.ones(len(kernel), self.prompts, dtype=torch.float64))
        return recursion.log_mass(self._walk(kernel), start, len(kernel), self.horizon)

    def run_rows(self, routes: Routes, kernel: Tensor) -> Rows:
        """The row of every prompt, and of every context that a token leads to and from which another is said."""
        members, place, layout = len(kernel), self.branches.place, self.task.layout
        ids, inside = routes.contexts, place < self.contexts
        mass, answered = (torch.zeros(members, self.contexts, dtype=torch.float64) for _ in range(2))
        depth = 0
        if not layout.answer:
            mass = self._visits(kernel, self.horizon - 1)
        for came in self._came(kernel, self.horizon - 1) if layout.answer else ():
            steps = range(depth + 1, depth + len(came) + 1)
            mass += came.sum(0)
            answered += came[torch.tensor([layout.answered(t) for t in steps])].sum(0)
            depth = steps[-1]
        spoken = self.branches.collapse(kernel)
        flow, told = ((x[..., None] * spoken)[:, inside] for x in (mass, answered))
        origin, target = inside.nonzero()[:, 0], place[inside]
        opening = ids[:, self.table.start]
        each = torch.full((members, self.prompts), 1.0 / self.prompts, dtype=torch.float64)
        # a token that an environment answers is run as well, and so is the answer: as the context that they lead to
        return Rows(
            ids=torch.cat([opening, ids[:, target], *[ids[:, target]] * layout.answer], dim=1),
            before=torch.cat([torch.full_like(opening, -1), ids[:, origin], *[ids[:, target]] * layout.answer], dim=1),
            weight=torch.cat([each, flow, *[told] * layout.answer], dim=1),
        )

    def responses(self, logp: Tensor) -> Responses:
        """A sample; members draw with the same random numbers, so that one alone draws what it draws among others."""
        each = -(-self.samples // self.prompts)
        prompt = torch.arange(self.prompts).repeat(each)
        keys = noise.combine(noise.mix(torch.tensor(SALT)), torch.arange(len(prompt)))
        asked = prompt.expand(len(logp), -1)
        drawn = draw(self.table, logp, asked, keys, self.horizon)
        return Responses(
            path=(drawn.contexts * self.vocab + drawn.tokens).int(),
            mask=drawn.mask,
            prompt=asked,
            rewards=drawn.rewards,
            vocab=self.vocab,
            sampled=True,
        )

    def _step(self, model: Model, replay: Given | None) -> Step:
        given = None if replay is None else replay.at(lambda routes: routes.contexts)
        return chunked_step(model, None, self.table.features, self.table.keys, given)

    def _walk(self, kernel: Tensor) -> Walk:
        return recursion.walk(self.branches.collapse(kernel), self.branches)

    def _worth(self, members: int) -> Worth:
        """1 where a response earns a level, n kinds."""
        hot = torch.nn.functional.one_hot(self.table.level, len(self.levels)).double().T
        ends = hot[:, None, self.contexts :].expand(-1, members * self.contexts, -1)
        return Worth(cut=hot[:, : self.contexts].repeat(1, members).numpy(), ends=ends.numpy())

    def _apart(self, worth: Tensor, owner: Tensor) -> tuple[Array, Worth, list[tuple[int, int, int]]]:
        """Start, kinds and sums where every context has one prompt, so that what a response is worth hangs on where it
        is: as many kinds as columns, `worth` `[M, C, n, X]`."""
        members, used = len(worth), [c for c in range(worth.shape[1]) if bool(worth[:, c].any())]
        level, size = self.table.level, self.contexts
        cut = worth[:, used][:, :, level[:size], owner].transpose(0, 1).flatten(1)
        ends = worth[:, used][:, :, level[size:, None], owner].permute(1, 0, 3, 2).flatten(1, 2)
        start = self._start(torch.ones(members, self.prompts, dtype=torch.float64))
        sums = [(0, kind, column) for kind, column in enumerate(used)]
        return start[None], Worth(cut=cut.numpy(), ends=ends.numpy()), sums

    def _together(self, worth: Tensor) -> tuple[Array, Worth, list[tuple[int, int, int]]]:
        """The same where prompts share contexts: a kind for every level, a start for every column and level."""
        members, columns, levels, _ = worth.shape
        used = [(c, n) for c in range(columns) for n in range(levels) if bool(worth[:, c, n].any())]
        start = np.stack([self._start(worth[:, c, n]) for c, n in used])
        return start, self._worth(members), [(p, n, c) for p, (c, n) in enumerate(used)]

    def _start(self, weight: Tensor) -> Array:
        """d_1 of prompts that weigh `[M, X]`, each divided by X, `[M S]`."""
        first = torch.zeros(len(weight), self.contexts, dtype=torch.float64)
        first.index_add_(1, self.table.start, weight / self.prompts)
        return first.flatten().numpy()

    def _lengths(self, by_length: Tensor | None) -> Array:
        return np.ones(self.horizon + 1) if by_length is None else by_length.double().numpy()

    def _came(self, kernel: Tensor, steps: int | None = None) -> Iterator[Tensor]:
        """d_t of every step, or of the first so many, prompts equally likely, `[k, M, S]` for k steps at a time."""
        start = self._start(torch.ones(len(kernel), self.prompts, dtype=torch.float64))
        back = recursion.transposed(self._walk(kernel).step())
        with flushed():
            for came in recursion.forward(back, range(1, (self.horizon if steps is None else steps) + 1), start):
                yield torch.from_numpy(came).view(len(came), len(kernel), self.contexts)
