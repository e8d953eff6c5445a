"""`chain`: a chain of reasoning steps, each with several right tokens; one wrong token and the chain is lost.

A problem has Q positions, which a response goes through one after the other and round, a token each. What a token does
depends on its rank in a hash of problem and position, and on the mode of the context:

    on the chain          `right` tokens keep it; `thinking` tokens lead to a thought context; the others lose it
    thought               2 · `right` tokens keep it, those that are right on the chain among them; thinking stays
    off the chain         `recovery` tokens lead back onto it
    off it and told so    2 · `recovery` tokens do

Every token but a thinking one goes on to the next position. With `feedback` the environment says a token after every
turn, 1 if the chain holds and 2 if it is lost; what it said is part of the context.

`ending = horizon`: every response is cut there, and earns 1 if it is on the chain. `ending = answer`: token 0 ends a
response; `binary` pays 1 for an answer on the chain at the last position, `graded` (q+1)/Q for one at position q.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from firstorder.core.tasks import Answer, Episodes, silence
from firstorder.sim.model import noise

from .contexts import Contexts
from .places import OFF, ON, THOUGHT, TOLD, Places, features, number, places
from .task import SimTask

HOLDS, LOST = 1, 2


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a cold start teaches at each of S contexts.

    Args:
        good: bool `[S, V]`, the tokens to say; none where nothing is taught.
        others: float64 `[S, V]`, the distribution over the other tokens.
    """

    good: Tensor
    others: Tensor

    def target(self, share: float) -> Tensor:
        """The distribution to learn, `[S, V]`: `share` on the good tokens, all alike; 0 where nothing is taught."""
        good = self.good.double()
        even = good / good.sum(-1, keepdim=True).clamp(min=1.0)
        return torch.where(self.good.any(-1, keepdim=True), share * even + (1 - share) * self.others, 0.0)


class Chain(SimTask):
    """Steps that must all be right."""

    @property
    def prompt_length(self) -> int:
        """One token, the number of the problem."""
        return 1

    @property
    def answer_length(self) -> int:
        """One token, where the environment says any."""
        return int(self.sim.feedback)

    @property
    def table(self) -> Tensor:
        """The numbers of the problems."""
        return torch.arange(self.size)[:, None]

    def answer(self, episodes: Episodes) -> Answer:
        """Whether the chain of each episode holds, where the environment says anything."""
        if not self.sim.feedback:
            return silence(episodes)
        said = self.layout.places
        said = said[said < episodes.tokens.shape[-1]]
        contexts, start, at = self._of(episodes.prompt)
        place = contexts.end(start, episodes.tokens[..., said], episodes.mask[..., said])
        holds = at.holds[place.clamp(max=len(at.holds) - 1)]
        return Answer(tokens=torch.where(holds, HOLDS, LOST)[..., None], lengths=torch.ones_like(episodes.lengths))

    def earned(self, prompts: Tensor, response: Tensor) -> Tensor:
        """What a response comes to that walks from context to context; see `SimTask.earned`."""
        contexts, start, _ = self._of(prompts[..., 0])
        over = (response == 0) if self.sim.first else torch.zeros_like(response, dtype=torch.bool)
        return contexts.rewards[contexts.end(start, response, over.cumsum(-1) - over.long() == 0)]

    def contexts(self, rows: Tensor) -> Contexts:
        """The contexts of problems `rows`, int64 `[X]`, in the order of `places`."""
        sim, at = self.sim, places(self.sim, rows)
        size = len(at.mode) // len(rows)
        start = torch.arange(len(rows)) * size
        follow = number(sim, self._next(at, torch.arange(len(at.mode)) // size))
        answered = sim.ending == "answer"
        levels = sim.positions if sim.graded else 1
        if answered:
            follow[:, 0] = len(follow) + self._ending(at)
        return Contexts(
            features=features(sim, at),
            keys=at.keys,
            start=start,
            follow=follow,
            ends=torch.arange(levels + 1 if answered else 0).double() / levels,
            cut=torch.zeros(len(follow), dtype=torch.float64) if answered else at.holds.double(),
        )

    def lesson(self, rows: Tensor) -> Lesson:
        """What a cold start teaches at the contexts of `rows`: to stay on the chain or to get back, and to answer.

        The other tokens follow Zipf's law in the order of their ranks. Off the chain nothing is taught unless some
        tokens lead back.
        """
        at = places(self.sim, rows)
        rank = self.rank(at.problem, at.position)
        good = self._good(at, rank)
        if self.sim.ending == "answer":
            last = at.holds & (at.position == self.sim.positions - 1)
            good[last] = torch.arange(self.sim.vocab) == 0
        other = torch.ones_like(good).scatter(-1, rank, ~good)  # by rank
        weight = torch.where(other, other.cumsum(-1).clamp(min=1).double() ** -self.sim.tail, 0.0)
        return Lesson(good=good, others=(weight / weight.sum(-1, keepdim=True)).gather(-1, rank))

    def rank(self, problem: Tensor, position: Tensor) -> Tensor:
        """The place of each token in the order of a problem and position, int64 `[..., V]`; an end token's is last."""
        sim = self.sim
        key = noise.combine(noise.combine(noise.mix(problem), position), -1)
        hashed = noise.combine(key[..., None], torch.arange(sim.vocab))
        if sim.first:
            hashed[..., 0] = torch.iinfo(torch.int64).max
        return hashed.argsort(dim=-1, stable=True).argsort(-1)

    def _good(self, at: Places, rank: Tensor) -> Tensor:
        """Whether each token leads to the chain at the next position, bool `[S, V]`."""
        sim, back = self.sim, self._back
        low = torch.tensor([0, back, 0, back])[at.mode]  # of ON, OFF, THOUGHT, TOLD
        count = torch.tensor([sim.right, sim.recovery, 2 * sim.right, 2 * sim.recovery])[at.mode]
        return (low[:, None] <= rank) & (rank < (low + count)[:, None])

    def _next(self, at: Places, problem: Tensor) -> Places:
        """Where each token leads, `[S, V]`, the end token aside; `problem` `[S]` counts the problems."""
        sim, rank = self.sim, self.rank(at.problem, at.position)
        thinks = at.holds[:, None] & (self._back - sim.thinking <= rank) & (rank < self._back)
        phase = ((at.phase + 1) % sim.phases)[:, None].expand_as(rank)
        told = (at.mode == TOLD)[:, None] | (phase == 0 if sim.feedback else torch.zeros_like(thinks))
        lost = torch.where(told, TOLD, OFF)
        return Places(
            problem=problem[:, None].expand_as(rank),
            position=(at.position[:, None] + (~thinks).long()) % sim.positions,
            mode=torch.where(self._good(at, rank), ON, torch.where(thinks, THOUGHT, lost)),
            phase=phase,
        )

    def _ending(self, at: Places) -> Tensor:
        """The ending that an answer at each place comes to, int64 `[S]`."""
        reached = at.position + 1 if self.sim.graded else (at.position + 1) // self.sim.positions
        return torch.where(at.holds, reached, 0)

    @property
    def _back(self) -> int:
        """The rank of the first recovery token, after those that are right and those that think."""
        return self.sim.special - self.sim.recovery * (2 if self.sim.feedback else 1)

    def _of(self, problems: Tensor) -> tuple[Contexts, Tensor, Places]:
        """Contexts and places of all these problems, and where each of them, `[...]`, starts."""
        rows, which = torch.unique(problems, return_inverse=True)
        contexts, at = _table(self, tuple(rows.tolist()))
        return contexts, contexts.start[which], at


@lru_cache(maxsize=4)
def _table(task: Chain, rows: tuple[int, ...]) -> tuple[Contexts, Places]:
    """Kept, since a batch of responses is judged at once and another follows."""
    return task.contexts(torch.tensor(rows)), places(task.sim, torch.tensor(rows))
