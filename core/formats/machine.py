"""The machine that a pickle is a program for, reduced to what writes data down: its stack, marks and memo."""

from __future__ import annotations

import struct
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

from firstorder.core.errors import DataError


@dataclass(kw_only=True, eq=False)
class Inert:
    """What a pickle built of something that it named.

    Args:
        name: `module.name`.
        args: what it was called with, or None where it was only named.
        state: what its state was set to.
        items: keys and values put into it, or values appended.
    """

    name: str
    args: Any = None
    state: Any = None
    items: list[Any] = field(default_factory=list)


@dataclass(kw_only=True, eq=False)
class Machine:
    """A pickle that is being read: the place in it, the stack, and what it refers back to."""

    data: memoryview
    source: str
    names: Set[str]
    place: int = 0
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def wrong(self, what: str) -> DataError:
        """A refusal that names the file and the place."""
        return DataError(f"{self.source}: byte {self.place:,} of its pickle: {what}; write the dump anew")

    def take(self, size: int) -> memoryview:
        """The next bytes, which must be there."""
        end = self.place + size
        if end > len(self.data):
            raise self.wrong(f"{size:,} bytes are announced and {len(self.data) - self.place:,} are left")
        taken = self.data[self.place : end]
        self.place = end
        return taken

    def number(self, form: str) -> int:
        """The next number, in a form of `struct`."""
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def push(self, value: Any) -> None:
        """Put on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Take off the stack, not beyond the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.wrong("it takes from an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        """What is on top of the stack, above the last mark."""
        value = self.pop()
        self.stack.append(value)
        return value

    def above(self) -> list[Any]:
        """What lies above the last mark, taken off."""
        if not self.marks:
            raise self.wrong("it takes up to a mark that it never set")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values
