"""A micro-batch that does not fit into memory, named with what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from firstorder.core.errors import DataError

SAYS = ("out of memory", "can't allocate memory", "not enough memory")  # torch's allocators; the CPU's has no class


class MicrobatchMemoryError(DataError):
    """Forward or backward of a micro-batch ran out of memory."""


@contextmanager
def microbatch() -> Iterator[None]:
    """Run forwards and backwards inside.

    Raises:
        MicrobatchMemoryError: one did not fit into memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not any(s in str(error) for s in SAYS):
            raise
        said = str(error).strip().partition("\n")[0]
        raise MicrobatchMemoryError(
            f"a micro-batch does not fit into memory ({said}); lower torchtitan.microbatch_rows or pack_length, raise "
            "loss_chunks, or set activation_checkpoint = full, and go on with --resume"
        ) from None
