"""Demonstrations: responses drawn from those that a finite automaton accepts, in one of three styles.

Shapes: X prompts, S states, V vocabulary, T horizon, `...` any leading axes.

Nothing is enumerated. The share of words of n tokens that are accepted from a state follows from that of n - 1,

    share_n(s) = mean over tokens v of share_{n-1}(follow(s, v)),      share_0 = accept,

and a word drawn token by token with chances proportional to share_{n-1}(follow(s, v)) is uniform over the accepted
words of its length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from firstorder.core.errors import ConfigError
from firstorder.sim.model import noise

Style = Literal["terse", "verbose", "roundabout"]


@dataclass(frozen=True, kw_only=True)
class Automaton:
    """Which responses, the end token left out, are correct for each prompt.

    Args:
        start: int64 `[X]`, the state before the first token.
        follow: int64 `[X, S, V-1]`, the state after each of the tokens 1 to V-1.
        accept: bool `[X, S]`, states in which a correct response may end.
    """

    start: Tensor
    follow: Tensor
    accept: Tensor


@dataclass(frozen=True, kw_only=True)
class Demonstrator:
    """Whoever shows responses.

    - `terse`: a shortest correct response, all of them equally often.
    - `verbose`: the longest, always with the lowest token that still leads to a correct one.
    - `roundabout`: a correct response of the next length after the shortest, all of them equally often.

    Args:
        automaton: which responses are correct.
        shares: float64 `[T, X, S]`, of the words of 0, ..., T-1 tokens that are accepted.
        style: one of the three.
        correct: share of demonstrations that are correct; the others are as long and say anything.
    """

    automaton: Automaton
    shares: Tensor
    style: Style
    correct: float

    @property
    def lengths(self) -> Tensor:
        """Length of a demonstration to each prompt, the end token left out, int64 `[X]`; -1 where there is none."""
        start = self.automaton.start.expand(len(self.shares), -1)[..., None]
        possible = self.shares.gather(-1, start)[..., 0].T > 0
        length = torch.arange(len(self.shares))
        longest = torch.where(possible, length, -1).amax(-1)
        rank = possible.cumsum(-1)
        wanted = {"terse": rank == 1, "verbose": length == longest[:, None], "roundabout": rank == 2}[self.style]
        chosen = torch.where(wanted & possible, length, -1).amax(-1)
        return torch.where(chosen < 0, longest, chosen)

    def draw(self, rows: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Demonstrations, `[..., T]`: tokens, token 0 at the end, and the mask of what is said.

        Args:
            rows: int64 `[...]`, which of the X prompts.
            keys: int64 `[...]`, the hash key of each demonstration.
        """
        horizon, length, state = len(self.shares), self.lengths[rows], self.automaton.start[rows]
        right = noise.uniform(noise.combine(keys, -1)) < self.correct
        words = []
        for place in range(horizon - 1):
            follow = self.automaton.follow[rows, state]
            left = (length - place - 1).clamp(min=0)
            chance = self.shares[left[..., None], rows[..., None], follow]
            if self.style == "verbose":
                chance = ((chance > 0) & ((chance > 0).cumsum(-1) == 1)).double()
            chance = torch.where(right[..., None], chance, 1.0)
            drawn = _pick(chance, noise.uniform(noise.combine(keys, place)))
            state = follow.gather(-1, drawn[..., None])[..., 0]
            words.append(torch.where(place < length, drawn + 1, 0))
        tokens = torch.stack([*words, torch.zeros_like(length)], dim=-1)
        return tokens, torch.arange(horizon) <= length[..., None]


def demonstrator(automaton: Automaton, horizon: int, style: Style, correct: float = 1.0) -> Demonstrator:
    """Demonstrations of up to `horizon` tokens, the end token included.

    Raises:
        ConfigError: a prompt has no correct response of that length.
    """
    shares, flat = [automaton.accept.double()], automaton.follow.flatten(1)
    for _ in range(horizon - 1):
        shares.append(shares[-1].gather(-1, flat).view(automaton.follow.shape).mean(-1))
    shown = Demonstrator(automaton=automaton, shares=torch.stack(shares), style=style, correct=correct)
    without = int((shown.lengths < 0).sum())
    if without:
        raise ConfigError(
            f"sim.coldstart shows correct responses, but {without} of {len(automaton.start)} training prompts "
            f"have none of at most sim.horizon = {horizon} tokens; raise sim.horizon"
        )
    return shown


def _pick(chance: Tensor, u: Tensor) -> Tensor:
    """An index with chances proportional to `[..., n]`, by inversion at u `[...]`; where all are 0, any."""
    edges = chance.cumsum(-1)
    drawn = (edges <= u[..., None] * edges[..., -1:]).sum(-1)
    last = chance.shape[-1] - 1 - (chance > 0).flip(-1).long().argmax(-1)
    return torch.minimum(drawn, last)
