"""The Task protocol: prompts, a verifier, and an environment that answers the policy's turns.

Everything passes as padded batches of token ids, laid out like a `RolloutBatch`. The simulator reads them as tensors,
all responses at once; a task of texts or of programs that are executed decodes each row, judges it and encodes what
it has to say, so that the backend that samples sees token ids in either case.

Shapes: `...` any leading axes, L tokens (prompt, response and answers, padded at the end), E tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .errors import DataError

RANGE = (0.0, 1.0)  # of a reward


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """Prompts with what the policy and the environment have said since.

    Args:
        tokens: int64 `[..., L]`.
        mask: bool `[..., L]`, True on the tokens that the policy sampled; False on prompt, answers and padding.
        lengths: int64 `[...]`, tokens that are not padding.
        prompt: int64 `[...]`, which of the task's prompts it is.

    Raises:
        DataError: naming the field and the shape that it must have.
    """

    tokens: Tensor
    mask: Tensor
    lengths: Tensor
    prompt: Tensor

    def __post_init__(self) -> None:
        whole = self.tokens.shape
        for name, shape in {"mask": whole, "lengths": whole[:-1], "prompt": whole[:-1]}.items():
            if getattr(self, name).shape != shape:
                raise DataError(f"`{name}` must be {list(shape)}, got {list(getattr(self, name).shape)}")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an environment says after a turn: `tokens` int64 `[..., E]`, padded at the end, and how many they are,
    `lengths` int64 `[...]`; 0 where the episode is over."""

    tokens: Tensor
    lengths: Tensor


class Task(Protocol):
    """What is to be learnt. An answer's tokens join the context and nothing else: no loss, no ratio, no denominator."""

    @property
    def size(self) -> int:
        """How many prompts there are."""

    def prompts(self, rows: Tensor) -> Episodes:
        """The prompts of these rows, int64 `[...]` below `size`, with nothing said yet."""

    def answer(self, episodes: Episodes) -> Answer:
        """The environment's answer to episodes whose last token ended a turn; `silence` from a single-turn task."""

    def verify(self, episodes: Episodes) -> Tensor:
        """Reward of finished episodes, `[...]` in `RANGE`."""


def silence(episodes: Episodes) -> Answer:
    """Nothing to say: every episode is over."""
    shape = episodes.lengths.shape
    none = torch.zeros(*shape, 0, dtype=torch.int64, device=episodes.tokens.device)
    return Answer(tokens=none, lengths=torch.zeros_like(episodes.lengths))


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Lists of token ids as int64 `[B, L]`, padded at the end with 0, and their lengths `[B]`.

    Example:
        >>> padded([[5, 6, 7], [8]])[0].tolist()
        [[5, 6, 7], [8, 0, 0]]
    """
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return tokens, lengths
