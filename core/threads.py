"""How many threads torch computes with: as many as the work fills.

The kernels of a tiny policy are small. With a thread a core they spend their time waiting for each other, and many
times that where other processes want the cores (docs/benchmarks.md). Sums of several threads may differ from those of
one in their last digits, so work that takes more than one says so.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch

FILLS = 1 << 18  # numbers of a kernel for each thread; with a quarter of it a second gains nothing (docs/benchmarks.md)
OVERRIDE = "OMP_NUM_THREADS"  # read by torch when it is imported; where it is set, that number stays

log = logging.getLogger("firstorder")
_lock = threading.Lock()
_running: list[int] = []  # one for each block at work: what torch had when it began
Function = TypeVar("Function", bound=Callable[..., Any])


def filled(numbers: int, limit: int) -> int:
    """Threads for kernels over so many numbers: one for each `FILLS` of them, at least one, at most `limit`.

    Example:
        >>> filled(1000, 8), filled(3 * FILLS, 8), filled(100 * FILLS, 8)
        (1, 3, 8)
    """
    return max(1, min(limit, numbers // FILLS))


@contextmanager
def threads(numbers: int) -> Iterator[None]:
    """Compute the block with as many threads as its work fills, and what comes after with as many as before.

    Never more than torch has: the cores, or what `torch.set_num_threads` was told. Where OMP_NUM_THREADS is set, what
    torch has stays. More than one are logged.

    Args:
        numbers: that the largest kernels work on at once.
    """
    with _lock:
        before = torch.get_num_threads()
        count = before if OVERRIDE in os.environ else filled(numbers, before)
        _running.append(before)
        torch.set_num_threads(count)
    try:
        if count > 1:
            _tell(count)
        yield
    finally:
        with _lock:
            first = _running[0]
            _running.pop()
            if not _running:  # torch has one number for all threads of Python: it is put back when nobody computes
                torch.set_num_threads(first)


def sized(numbers: Callable[..., int]) -> Callable[[Function], Function]:
    """A function that computes with as many threads as its arguments fill; `numbers` takes the same arguments."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with threads(numbers(*args, **kwargs)):
                return function(*args, **kwargs)

        return cast(Function, run)

    return decorate


@functools.cache  # once
def _tell(count: int) -> None:
    """Log that there are several threads, and warn where they spin while they wait: torch came before `firstorder`."""
    log.info("torch computes with %d threads; %s=1 gives the last digits of one", count, OVERRIDE)
    if "OMP_WAIT_POLICY" not in os.environ:
        warnings.warn(
            "torch was imported before firstorder, so its threads spin while they wait and slow each other down; "
            "import firstorder first, or set OMP_WAIT_POLICY=passive",
            stacklevel=2,
        )
