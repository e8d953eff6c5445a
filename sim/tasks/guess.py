"""`guess`: find a hidden number in several turns, told after each whether it is lower or higher.

The hidden number is a hash of the prompt. A turn of τ tokens is a guess, its tokens less one the digits in base V-1,
the first digit worth most. The environment answers with one token: 1 if the hidden number is lower, 2 if it is the
guess, 3 if it is higher. Turns that hold the end token, or that the horizon cuts, are no guesses. `graded` pays
1 - (k-1)/K for a first hit in turn k of the K = T // τ there are, `binary` 1 for a hit in any.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.core.tasks import Answer, Episodes
from firstorder.sim.model import noise

from .demonstrations import Automaton
from .task import WordTask

LOWER, EQUAL, HIGHER = 1, 2, 3


class Guess(WordTask):
    """A search with an environment that answers."""

    @property
    def answer_length(self) -> int:
        """One token."""
        return 1

    def earned(self, prompts: Tensor, response: Tensor) -> Tensor:
        """More for an earlier hit, or 1 for any; see `SimTask.earned`."""
        turns = self.sim.horizon // self.sim.turn_length
        guesses = response[..., : turns * self.sim.turn_length].reshape(*response.shape[:-1], turns, -1)
        hit = (guesses == self.hidden(prompts)[..., None, :]).all(-1)
        late = torch.arange(turns).double() / turns
        return (hit * (1.0 - late if self.sim.graded else torch.ones_like(late))).amax(-1)

    def hidden(self, prompts: Tensor) -> Tensor:
        """The tokens of the hidden number, int64 `[..., τ]`, from 1 to V-1."""
        key = noise.mix(prompts[..., 0])
        for token in prompts[..., 1:].unbind(-1):
            key = noise.combine(key, token)
        digits = noise.uniform(noise.combine(key[..., None], torch.arange(self.sim.turn_length)))
        return 1 + (digits * (self.sim.vocab - 1)).long()

    def answer(self, episodes: Episodes) -> Answer:
        """What `reply` says to the turn that has just ended."""
        sim, tokens = self.sim, episodes.tokens
        answer = self.reply(tokens[..., : sim.prompt_length], tokens[..., -sim.turn_length :])
        return Answer(tokens=answer, lengths=torch.full(answer.shape[:-1], answer.shape[-1]))

    def reply(self, prompts: Tensor, turn: Tensor) -> Tensor:
        """Whether the hidden number is lower, equal or higher than a turn `[..., τ]`; `[..., answer_length]`."""
        apart = (self.hidden(prompts) - turn).sign()
        # the first digit that differs decides
        first = (apart != 0).long().argmax(-1, keepdim=True)
        return apart.gather(-1, first) + EQUAL

    def automaton(self, prompts: Tensor) -> Automaton:
        """Any wrong guesses, then the hidden number, then the end.

        State 2 i + j stands before digit i of a guess, j = 1 if a digit before was wrong; then come the hit, which is
        accepted, and what goes on after it, which is not.
        """
        size, vocab = self.sim.turn_length, self.sim.vocab
        state, token = torch.arange(2 * size), torch.arange(1, vocab)
        digit, wrong = state[:, None] // 2, state[:, None] % 2
        missed = torch.maximum(wrong, (self.hidden(prompts).repeat_interleave(2, -1)[..., None] != token).long())
        hit, lost = 2 * size, 2 * size + 1
        over = torch.where(missed == 1, 0, hit)
        follow = torch.where(digit == size - 1, over, 2 * (digit + 1) + missed)
        stuck = torch.full((len(prompts), 2, vocab - 1), lost)
        return Automaton(
            start=torch.zeros(len(prompts), dtype=torch.int64),
            follow=torch.cat([follow, stuck], dim=1),
            accept=(torch.arange(2 * size + 2) == hit).expand(len(prompts), -1),
        )
