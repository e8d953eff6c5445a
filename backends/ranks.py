"""What the ranks of one trainer share: the first rank samples, verifies and writes files, the others are told.

With one process every function here is the call it wraps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed

from firstorder.core.errors import DataError

Value = TypeVar("Value")
Item = TypeVar("Item", bound=Hashable)
distributed: Any = torch.distributed
LOST = ("gloo", "connection", "timed out", "timeout", "nccl", "socket")  # of which a broken collective speaks


class LostRankError(DataError):
    """Another rank of the trainer ended, or did not answer in time."""


def world() -> int:
    """How many ranks there will be, from the variables that torchrun sets."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def count() -> int:
    """How many ranks there are."""
    return int(distributed.get_world_size()) if distributed.is_initialized() else 1


def first() -> bool:
    """Whether this rank is the one that samples and writes."""
    return count() == 1 or int(distributed.get_rank()) == 0


def broadcast_from_rank0(make: Callable[[], Value]) -> Value:
    """What `make` returns or raises on the first rank, on every rank."""
    if count() == 1:
        return make()
    held: list[Any] = [None, None]
    if first():
        try:
            held[0] = make()
        except Exception as error:
            held[1] = error
    distributed.broadcast_object_list(held, src=0)
    if held[1] is not None:
        raise held[1]
    value: Value = held[0]
    return value


def divided(items: Sequence[Item], owner: Callable[[Item], int], work: Callable[[Item], Value]) -> dict[Item, Value]:
    """`work` of every item, done by the rank that owns it, counted round where there are fewer, and known to all."""
    ranks = count()
    if ranks == 1:
        return {item: work(item) for item in items}
    mine = {item: work(item) for item in items if owner(item) % ranks == distributed.get_rank()}
    held: list[Any] = [None] * ranks
    distributed.all_gather_object(held, mine)
    return {item: value for part in held for item, value in part.items()}


def largest(number: int) -> int:
    """The largest of the ranks' numbers, on every rank."""
    if count() == 1:
        return number
    everyones = torch.tensor(number)
    distributed.all_reduce(everyones, op=distributed.ReduceOp.MAX)
    return int(everyones)


def agreed(failed: Exception | None) -> None:
    """Raise on every rank what failed on one, so that none waits for another that gave up."""
    found: list[Exception | None] = [failed]
    if count() > 1:
        found = [None] * count()
        distributed.all_gather_object(found, failed)
    for error in found:
        if error is not None:
            raise error


@contextmanager
def together() -> Iterator[None]:
    """Name a collective that broke inside, which is how a rank learns that another one is gone.

    Raises:
        LostRankError: another rank was killed, stopped with an error, or was silent for `torchtitan.timeout` seconds.
    """
    try:
        yield
    except RuntimeError as error:
        if count() == 1 or not any(word in str(error).lower() for word in LOST):
            raise
        raise LostRankError(
            f"rank {distributed.get_rank()} lost another rank, which was killed, failed, or was silent for longer than "
            "torchtitan.timeout; see what it said last, then start all ranks again with --resume"
        ) from None
