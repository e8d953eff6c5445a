"""What the ranks of one trainer share: the first rank samples, verifies and writes files, the others are told.

With one process every function here is the call it wraps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed

Value = TypeVar("Value")
distributed: Any = torch.distributed


def count() -> int:
    """How many ranks there are."""
    return int(distributed.get_world_size()) if distributed.is_initialized() else 1


def first() -> bool:
    """Whether this rank is the one that samples and writes."""
    return count() == 1 or int(distributed.get_rank()) == 0


def told(make: Callable[[], Value]) -> Value:
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
