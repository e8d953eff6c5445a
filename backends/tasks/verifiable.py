"""A task of texts behind `core.tasks.Task`: problems become token ids, responses become texts that are judged.

Shapes: `...` any leading axes, L tokens of an episode.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from firstorder.core.tasks import Answer, Episodes, padded, silence

from .chat import Chat
from .problems import Problem, Problems

Judge = Callable[[Sequence[Problem], Sequence[str]], list[float]]
"""Rewards of responses to problems."""


@dataclass(frozen=True, kw_only=True)
class Verifiable:
    """A single-turn task.

    Args:
        chat: the model's tokenizer.
        problems: the prompts.
        judge: what responses earn.
        system: instruction before every question.
        truncated: what a response earns that was cut at its limit: 0, or what the judge says.
    """

    chat: Chat
    problems: Problems
    judge: Judge
    system: str
    truncated: Literal["zero", "scored"]

    @property
    def size(self) -> int:
        """How many prompts there are."""
        return self.problems.size

    def prompts(self, rows: Tensor) -> Episodes:
        """The prompts of these rows, `[B]`.

        Raises:
            DataError: the tokenizer has no token for a character.
        """
        questions = [self.problems[row].question for row in rows.tolist()]
        tokens, lengths = padded([self.chat.prompt(self.system, question) for question in questions])
        return Episodes(tokens=tokens, mask=torch.zeros_like(tokens, dtype=torch.bool), lengths=lengths, prompt=rows)

    def answer(self, episodes: Episodes) -> Answer:
        """Nothing: one turn is all."""
        return silence(episodes)

    def verify(self, episodes: Episodes) -> Tensor:
        """What the judge says of the last turn, `[B]`."""
        problems = [self.problems[row] for row in episodes.prompt.tolist()]
        said = [turns[-1] if turns else [] for turns in said_in(episodes)]
        rewards = self.judge(problems, [self.chat.text(tokens) for tokens in said])
        whole = [self.truncated == "scored" or self.chat.ended(tokens) for tokens in said]
        return torch.tensor([r * w for r, w in zip(rewards, whole, strict=True)], dtype=torch.float64)


def said_in(episodes: Episodes) -> list[list[list[int]]]:
    """The policy's tokens of each turn of each episode `[B]`: the runs of its mask."""
    per_episode = []
    for tokens, mask in zip(episodes.tokens.tolist(), episodes.mask.tolist(), strict=True):
        turns: list[list[int]] = []
        for place, sampled in enumerate(mask):
            if sampled and (place == 0 or not mask[place - 1]):
                turns.append([])
            if sampled:
                turns[-1].append(tokens[place])
        per_episode.append(turns)
    return per_episode


def conclusion(text: str) -> str:
    """What a response comes to: what follows its thoughts, and in that the last <answer>, if there is one.

    Example:
        >>> conclusion("<think>4 or <answer>5</answer>?</think> So <answer> 4 </answer>."), conclusion("4")
        ('4', '4')
    """
    after = text.rpartition("</think>")[2]
    marked: list[str] = re.findall(r"<answer>(.*?)</answer>", after, flags=re.DOTALL)
    return (marked[-1] if marked else after).strip()
