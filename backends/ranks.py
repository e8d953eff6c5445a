"""What the ranks of one trainer share: rank 0 samples, verifies and writes files, and broadcasts what it got.

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
LOST = ("gloo", "connection", "timed out", "timeout", "nccl", "socket")  # words in the error of a broken collective


class LostRankError(DataError):
    """Another rank of the trainer ended, or did not answer in time."""


def launched_ranks() -> int:
    """How many ranks were launched, from the variables that torchrun sets, before they have a process group."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def num_ranks() -> int:
    """How many ranks there are."""
    return int(distributed.get_world_size()) if distributed.is_initialized() else 1


def is_rank0() -> bool:
    """Whether this rank is the one that samples and writes."""
    return num_ranks() == 1 or int(distributed.get_rank()) == 0


def broadcast_from_rank0(make: Callable[[], Value]) -> Value:
    """What `make` returns or raises on the first rank, on every rank."""
    if num_ranks() == 1:
        return make()
    outcome: list[Any] = [None, None]  # the value, the error
    if is_rank0():
        try:
            outcome[0] = make()
        except Exception as error:
            outcome[1] = error
    distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    value: Value = outcome[0]
    return value


def all_gather_map(
    items: Sequence[Item], owner: Callable[[Item], int], work: Callable[[Item], Value]
) -> dict[Item, Value]:
    """`work` of every item, done by the rank that owns it (modulo the number of ranks) and gathered on all of them."""
    if num_ranks() == 1:
        return {item: work(item) for item in items}
    mine = {item: work(item) for item in items if owner(item) % num_ranks() == distributed.get_rank()}
    parts: list[Any] = [None] * num_ranks()
    distributed.all_gather_object(parts, mine)
    return {item: value for part in parts for item, value in part.items()}


def all_reduce_max(number: int) -> int:
    """The largest of the ranks' numbers, on every rank."""
    if num_ranks() == 1:
        return number
    largest = torch.tensor(number)
    distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
    return int(largest)


def raise_on_every_rank(error: Exception | None) -> None:
    """Raise on every rank the error of one, so that none waits for another that gave up."""
    errors: list[Exception | None] = [error]
    if num_ranks() > 1:
        errors = [None] * num_ranks()
        distributed.all_gather_object(errors, error)
    for one in errors:
        if one is not None:
            raise one


@contextmanager
def detect_lost_rank() -> Iterator[None]:
    """Turn the error of a broken collective, which is how a rank learns that another is gone, into one that says so.

    Raises:
        LostRankError: another rank was killed, stopped with an error, or was silent for `torchtitan.timeout` seconds.
    """
    try:
        yield
    except RuntimeError as error:
        if num_ranks() == 1 or not any(word in str(error).lower() for word in LOST):
            raise
        raise LostRankError(
            f"rank {distributed.get_rank()} lost another rank, which was killed, failed, or was silent for longer than "
            "torchtitan.timeout; see its last message, then start all ranks again with --resume"
        ) from None
