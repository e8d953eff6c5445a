"""What the simulator's tasks have in common: a table of prompts, and where the tokens of an episode stand.

Shapes: `...` any leading axes, P tokens of a prompt, T response tokens at most, L tokens of a whole episode, τ tokens
of a turn, E tokens of an answer.

Token 0 ends a response anywhere, but where `sim.ending` says otherwise. An environment answers after every τ response
tokens, so that an answer stands at the same places in every episode and is a function of the prompt and of what was
said. Once a response has ended, nobody answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from firstorder.core.errors import ConfigError
from firstorder.core.tasks import Answer, Episodes, silence
from firstorder.sim.config import Sim
from firstorder.sim.model import noise

from .contexts import Contexts
from .demonstrations import Automaton


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The places of an episode: `prompt` tokens, then up to `horizon` of the policy, after every `turn` of which stand
    `answer` of the environment, but for the last."""

    prompt: int
    horizon: int
    turn: int
    answer: int

    @property
    def places(self) -> Tensor:
        """Where the response tokens stand, int64 `[T]`."""
        return torch.tensor([self.before(depth) for depth in range(self.horizon)])

    @property
    def turns(self) -> Tensor:
        """The number of each response token's turn, from 1 on, int64 `[T]`; one turn where nothing answers."""
        said = torch.arange(self.horizon)
        return 1 + (said // self.turn if self.answer else torch.zeros_like(said))

    @property
    def length(self) -> int:
        """L, the tokens of the longest episode."""
        return self.before(self.horizon - 1) + 1

    def before(self, depth: int) -> int:
        """Tokens that stand before response token `depth`, answers included."""
        return self.prompt + depth + self.answer * (depth // self.turn)

    def answered(self, depth: int) -> bool:
        """Whether an answer stands right before response token `depth`; after the horizon's last there is none."""
        return self.answer > 0 and 0 < depth < self.horizon and depth % self.turn == 0


@dataclass(frozen=True)
class SimTask(ABC):
    """A task of the simulator; see `core.tasks.Task`, which it implements for all responses at once.

    A subclass says how prompts read and what a response earns, and a multi-turn one what its environment answers.
    """

    sim: Sim

    @property
    def prompt_length(self) -> int:
        """P, tokens of a prompt."""
        return self.sim.prompt_length

    @property
    def answer_length(self) -> int:
        """E, tokens that the environment says after a turn; 0 where there is none."""
        return 0

    @property
    def layout(self) -> Layout:
        """Where the tokens of its episodes stand."""
        sim, answer = self.sim, self.answer_length
        turn = sim.turn_length if answer else sim.horizon
        return Layout(prompt=self.prompt_length, horizon=sim.horizon, turn=turn, answer=answer)

    @property
    def size(self) -> int:
        """Every prompt that there is."""
        return self.sim.available

    def prompts(self, rows: Tensor) -> Episodes:
        """The prompts of these rows of a table of all, which is the same for every seed."""
        tokens = self.table[rows]
        lengths = torch.full(rows.shape, self.prompt_length)
        return Episodes(tokens=tokens, mask=torch.zeros_like(tokens, dtype=torch.bool), lengths=lengths, prompt=rows)

    def answer(self, episodes: Episodes) -> Answer:
        """Nothing; a task of several turns says `answer_length` tokens to everybody."""
        return silence(episodes)

    def verify(self, episodes: Episodes) -> Tensor:
        """Reward of finished episodes, `[...]` in [0, 1]; `sim.truncated` says what one cut at the horizon earns."""
        tokens, mask = episodes.tokens, episodes.mask
        response = torch.where(mask, tokens, 0)[..., self.layout.places]
        earned = self.earned(tokens[..., : self.prompt_length], response)
        ended = ((tokens == 0) & mask).any(-1)
        return torch.where(ended, earned, 0.0) if self.sim.truncated == "zero" else earned

    def contexts(self, rows: Tensor) -> Contexts:
        """The contexts of prompts `rows`, where what comes next depends on the context and the token alone.

        Raises:
            ConfigError: it depends on all that was said.
        """
        raise ConfigError(
            f"sim.world = graph needs a task whose contexts merge, but those of sim.task = {self.sim.task} are all "
            "that was said; set sim.task = chain or sim.world = tree"
        )

    @property
    @abstractmethod
    def table(self) -> Tensor:
        """The tokens of all prompts, int64 `[size, P]`."""

    @abstractmethod
    def earned(self, prompts: Tensor, response: Tensor) -> Tensor:
        """Reward `[...]` in [0, 1] of response tokens `[..., T]`, 0 from their end on, to prompts `[..., P]`."""


class WordTask(SimTask):
    """A task whose prompts are words of tokens, and of which responses that end can be shown."""

    @property
    def table(self) -> Tensor:
        """All (V-1)^P words, in a pseudo-random order."""
        return _words(self.sim.vocab, self.prompt_length)

    @abstractmethod
    def automaton(self, prompts: Tensor) -> Automaton:
        """The responses to prompts `[X, P]` that a demonstration may show."""


def rows(sim: Sim) -> tuple[Tensor, Tensor]:
    """Rows of the prompts measured, the first `sim.prompts`, and of up to as many of the next, which move θ."""
    return torch.arange(sim.prompts), torch.arange(sim.prompts, min(2 * sim.prompts, sim.available))


def picks(pool: int, seeds: Tensor, step: int, count: int) -> Tensor:
    """Which prompts of a pool each member sees at a step, int64 `[M, count]`: shuffled epochs of the pool.

    Args:
        pool: prompts in it.
        seeds: int64 `[M]`.
        step: the global step.
        count: prompts a step.
    """
    place = step * count + torch.arange(count)
    epochs = torch.arange(int(place[0]) // pool, int(place[-1]) // pool + 1)
    shuffle = noise.combine(noise.mix(seeds)[:, None], -1 - epochs)
    orders = noise.combine(shuffle[..., None], torch.arange(pool)).argsort(-1)
    return orders[:, place // pool - epochs[0], place % pool]


def heard(task: SimTask, rows: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """What the environment says next, int64 `[..., E]`, where prompts `rows` have come to the end of a turn."""
    return task.answer(Episodes(tokens=tokens, mask=mask, lengths=ends(mask), prompt=rows)).tokens


def converse(task: SimTask, rows: Tensor, response: Tensor, mask: Tensor) -> Episodes:
    """The episodes in which the policy says given tokens and the environment answers.

    Args:
        task: whose prompts and answers they are.
        rows: int64 `[...]`, the prompts.
        response: int64 `[..., T]`.
        mask: bool `[..., T]`, True up to the end of each response.
    """
    layout = task.layout
    tokens = torch.zeros(*rows.shape, layout.length, dtype=torch.int64)
    policy = torch.zeros(tokens.shape, dtype=torch.bool)  # True on the tokens that the policy says
    tokens[..., : layout.prompt] = task.prompts(rows).tokens
    tokens[..., layout.places] = torch.where(mask, response, 0)
    policy[..., layout.places] = mask
    for depth in filter(layout.answered, range(layout.horizon)):
        end = layout.before(depth)
        start = end - layout.answer
        answer = heard(task, rows, tokens[..., :start], policy[..., :start])
        tokens[..., start:end] = torch.where(mask[..., depth, None], answer, 0)
    return Episodes(tokens=tokens, mask=policy, lengths=ends(policy), prompt=rows)


def ends(mask: Tensor) -> Tensor:
    """Tokens of each episode, `[...]`: the last one is the policy's."""
    return ((torch.arange(mask.shape[-1]) + 1) * mask).amax(-1)


@lru_cache(maxsize=4)
def _words(vocab: int, length: int) -> Tensor:
    """All words, int64 `[(V-1)^P, P]`, in a fixed pseudo-random order."""
    axis = torch.arange(1, vocab)
    every = torch.cartesian_prod(*[axis] * length).reshape(-1, length)
    return every[noise.mix(torch.arange(len(every))).argsort()]
