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
from firstorder.sim.tasks.contexts import Contexts
from firstorder.sim.tasks.task import SimTask

from . import recursion
from .edges import Pass, Routes
from .recursion import After, Array, Branches, Walk, branches, flushed
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

    @cached_property
    def branches(self) -> Branches:
        """The distinct places that a context's tokens lead to."""
        return branches(self.table.follow, self.contexts)

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

    def run(self, model: Model, replay: Routes | None = None) -> Pass:
        """One pass over the rows of the table."""
        step = self._step(model, replay)
        return Pass(
            logp=step.logp,
            routes=Routes(contexts=step.ids, leads=()),
            live=Routes(contexts=step.live, leads=()),
            margin=step.margin,
            router_logp=step.router_logp,
        )

    def states(self, model: Model, replay: Routes | None = None) -> Tensor:
        """`World.states`."""
        with torch.no_grad():
            return self._step(model, replay).state

    def earned(self, kernel: Tensor, by_length: Tensor | None = None) -> Tensor:
        """`World.earned`."""
        cut, worth = self._worth(len(kernel))
        f = self._lengths(by_length)
        steps = range(1, self.horizon + 1)
        with flushed():
            values = recursion.last(recursion.backward(self._walk(kernel), steps, cut * f[-1], worth, f), cut)
        return torch.from_numpy(values).view(len(kernel), self.contexts, -1)[:, self.table.start].transpose(1, 2)

    def through(
        self, before: Tensor, after: Tensor, worth: Tensor, by_length: Tensor | None = None, near: Near | None = None
    ) -> Tensor:
        """`World.through`."""
        members, columns, levels, _ = worth.shape
        cut, ends = self._worth(members)
        used = [(c, n) for c in range(columns) for n in range(levels) if bool(worth[:, c, n].any())]
        passed = torch.zeros(members * self.contexts, self.branches.place.shape[1], columns, dtype=torch.float64)
        if used:
            start = np.stack([self._start(worth[:, c, n]) for c, n in used], axis=1)
            first = self._walk(before)
            far = first if after is before else self._walk(after)
            close = far if near is None else self._walk(near.kernel)
            second = After(far=far, near=close, steps=0 if near is None else near.steps)
            column, level = (list(x) for x in zip(*used, strict=True))
            with flushed():
                found = recursion.through(first, second, start, level, column, cut, ends, self._lengths(by_length))
            passed[..., : found.shape[-1]] = torch.from_numpy(found)
        passed = passed.view(members, self.contexts, -1, columns)
        which = self.branches.which[None, ..., None].expand(members, -1, -1, columns)
        return passed.gather(2, which).permute(0, 3, 1, 2)

    def visits(self, kernel: Tensor) -> Tensor:
        """`World.visits`."""
        total = torch.zeros(len(kernel), self.contexts, dtype=torch.float64)
        for came in self._came(kernel):
            total += came
        return total

    def by_step(self, kernel: Tensor, x: Tensor) -> Tensor:
        """`World.by_step`."""
        return torch.stack([(came * x).sum(-1) for came in self._came(kernel)], dim=-1)

    def expansion(self, kernel: Tensor, change: Tensor, order: int) -> Tensor:
        """`World.expansion`."""
        mass, moved = self.branches.collapse(kernel), self.branches.collapse(kernel * change)
        with flushed():
            values = recursion.expansion(mass, moved, self.branches, self.table.rewards, self.horizon, order)
        return values[:, self.table.start].mean(1)

    def squares(self, kernel: Tensor, x: Tensor, by_length: Tensor | None = None) -> Tensor:
        """`World.squares`."""
        cut, ends = self._worth(1)
        mass, once, twice = (self._walk((kernel * factor).expand_as(x)) for factor in (torch.ones(()), x, x.square()))
        with flushed():
            found = recursion.squares(mass, once, twice, cut, ends, self._lengths(by_length))
        return torch.from_numpy(found).view(len(x), self.contexts, -1)[:, self.table.start].transpose(1, 2)

    def log_mass(self, kernel: Tensor) -> Tensor:
        """`World.log_mass`."""
        start = self._start(torch.ones(len(kernel), self.prompts, dtype=torch.float64))
        return recursion.log_mass(self._walk(kernel), start, len(kernel), self.horizon)

    def run_rows(self, routes: Routes, kernel: Tensor) -> Rows:
        """The row of every prompt, and of every context that a token leads to and from which another is said."""
        members, place = len(kernel), self.branches.place
        ids, inside, layout = routes.contexts, place < self.contexts, self.task.layout
        mass, answered = (torch.zeros(members, self.contexts, dtype=torch.float64) for _ in range(2))
        for depth, came in enumerate(self._came(kernel), start=1):
            if depth < self.horizon:
                mass += came
                answered += came * layout.answered(depth)
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

    def _step(self, model: Model, replay: Routes | None) -> Step:
        return chunked_step(
            model, None, self.table.features, self.table.keys, None if replay is None else replay.contexts
        )

    def _walk(self, kernel: Tensor) -> Walk:
        return recursion.walk(self.branches.collapse(kernel), self.branches)

    def _worth(self, members: int) -> tuple[Array, Array]:
        """1 where a response that is cut on its way to a context earns a level, `[M S, n]`; the same of endings."""
        hot = torch.nn.functional.one_hot(self.table.level, len(self.levels)).double()
        return hot[: self.contexts].repeat(members, 1).numpy(), hot[self.contexts :].numpy()

    def _start(self, weight: Tensor) -> Array:
        """d_1 of prompts that weigh `[M, X]`, each divided by X, `[M S]`."""
        first = torch.zeros(len(weight), self.contexts, dtype=torch.float64)
        first.index_add_(1, self.table.start, weight / self.prompts)
        return first.flatten().numpy()

    def _lengths(self, by_length: Tensor | None) -> Array:
        return np.ones(self.horizon + 1) if by_length is None else by_length.double().numpy()

    def _came(self, kernel: Tensor) -> Iterator[Tensor]:
        """d_t of every step, prompts equally likely, `[M, S]` each."""
        start = self._start(torch.ones(len(kernel), self.prompts, dtype=torch.float64))
        with flushed():
            for now in recursion.forward(self._walk(kernel), range(1, self.horizon + 1), start):
                yield torch.from_numpy(now).view(len(kernel), self.contexts)
