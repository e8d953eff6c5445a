"""How far a long piece of work has come, told to whoever watches; as with a log, no result depends on it.

A loop whose length a user sets runs over `steps`, and whoever waits on something else says so with `tell`. Without a
watcher both cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

Watcher = Callable[[str, int, int, str], None]
"""Called with the name of a piece of work, how much of it is done, how much there is, and a note."""

_WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)
Item = TypeVar("Item", covariant=True)


class _Items(Sized, Iterable[Item], Protocol[Item]):
    """What has a length and can be gone through."""


def tell(what: str, done: int, total: int, note: str = "") -> None:
    """Say that `done` of `total` are done; all of them ends the piece of work."""
    watcher = _WATCHER.get()
    if watcher is not None:
        watcher(what, done, total, note)


def steps(what: str, items: _Items[Item]) -> Iterator[Item]:
    """The items, each told when its turn comes.

    Example:
        >>> with watched(lambda what, done, total, note: print(what, done, "of", total)):
        ...     squares = [n * n for n in steps("squares", range(2))]
        squares 0 of 2
        squares 1 of 2
        squares 2 of 2
    """
    for done, item in enumerate(items):
        tell(what, done, len(items))
        yield item
    tell(what, len(items), len(items))


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Tell this watcher what happens in the block, in this thread."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)
