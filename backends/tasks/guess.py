"""`guess`: find a hidden number in several turns, told after each whether it is lower or higher.

The policy's last whole number of a turn is its guess. A first hit in turn k of K earns 1 - (k-1)/K; a turn without a
number is a wrong guess, and a turn cut at its limit ends the game.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.backends.keys import key
from firstorder.core.errors import ConfigError
from firstorder.core.tasks import Answer, Episodes, padded

from .config import TaskSettings
from .problems import ENDLESS, TRIES, Problem, is_held_out
from .verifiable import Judge, Verifiable, said_in

SYSTEM = ""
PACKAGES: tuple[str, ...] = ()
LOWER, HIGHER, NONE = "lower", "higher", "say a number"


@dataclass(frozen=True)
class Games:
    """Games with hidden numbers, of which `share` are held out."""

    largest: int
    held_out: bool
    share: float
    size: int = ENDLESS

    def __getitem__(self, row: int) -> Problem:
        """The game of a row.

        Raises:
            ConfigError: no number is on this side.
        """
        side = "held out" if self.held_out else "train"
        for attempt in range(TRIES):
            hidden = 1 + key("guess", side, row, attempt) % self.largest
            if is_held_out(str(hidden), self.share) == self.held_out:
                return Problem(f"Guess my number from 1 to {self.largest}.", hidden)
        raise ConfigError(f"task.largest = {self.largest} leaves no number on the {side} side; raise it")


@dataclass(frozen=True, kw_only=True)
class Guess(Verifiable):
    """The game; `turns` is K."""

    turns: int

    def answer(self, episodes: Episodes) -> Answer:
        """What is said to each: nothing after a hit, after the last turn, or after a turn that was cut."""
        said = []
        for row, turns in zip(episodes.prompt.tolist(), said_in(episodes), strict=True):
            reply = self.reply(self.problems[row].reference, [self.chat.text(turn) for turn in turns])
            said.append(self.chat.answer(reply) if reply and self.chat.ended(turns[-1]) else [])
        tokens, lengths = padded(said)
        return Answer(tokens=tokens, lengths=lengths)

    def reply(self, hidden: int, turns: Sequence[str]) -> str:
        """The answer to the last turn; "" if the game is over."""
        last = guessed(turns[-1])
        if last == hidden or len(turns) >= self.turns:
            return ""
        return NONE if last is None else LOWER if hidden < last else HIGHER

    def verify(self, episodes: Episodes) -> Tensor:
        """More for an earlier hit, `[B]`."""
        rewards = []
        for row, turns in zip(episodes.prompt.tolist(), said_in(episodes), strict=True):
            counted = [turn for turn in turns if self.truncated == "scored" or self.chat.ended(turn)]
            texts = [self.chat.text(turn) for turn in counted]
            rewards.append(earned(self.problems[row].reference, texts, self.turns))
        return torch.tensor(rewards, dtype=torch.float64)


def problems(settings: TaskSettings) -> tuple[Games, Games]:
    """Those that are trained on, and those that are held out."""
    train, held_out = (Games(settings.largest, side, settings.held_out) for side in (False, True))
    return train, held_out


def judge(settings: TaskSettings) -> Judge:
    """Of one turn; a game is judged by `Guess.verify`."""

    def of_one(problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        return [earned(p.reference, [text], settings.turns) for p, text in zip(problems, texts, strict=True)]

    return of_one


def guessed(text: str) -> int | None:
    """The last whole number of a turn.

    Example:
        >>> guessed("not 7, but 12"), guessed("?")
        (12, None)
    """
    numbers = re.findall(r"\d{1,18}", text)
    return int(numbers[-1]) if numbers else None


def earned(hidden: int, turns: Sequence[str], limit: int) -> float:
    """1 - (k-1)/K for a first hit in turn k of K.

    Example:
        >>> earned(7, ["5", "9", "7"], 4), earned(7, ["5"], 4)
        (0.5, 0.0)
    """
    hits = [k for k, turn in enumerate(turns[:limit]) if guessed(turn) == hidden]
    return 1.0 - hits[0] / limit if hits else 0.0
