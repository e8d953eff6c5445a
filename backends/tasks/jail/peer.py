"""Both ends of the socket between a program and its judge: ask the other side, answer what it asks.

A message is a length and JSON: `["do", verb, arguments, names, changes]` asks; `["return", value, printed, changed]` or
`["raise", classes, text, printed]` answers. While one side waits for an answer it answers the other's questions, so a
program may call a function that a test gave it.
"""

from __future__ import annotations

import _thread
import json
import os
import struct
from collections.abc import Callable

from .plain import encode

TYPE_CHECKING = False  # typing takes as long to import as a test to run
if TYPE_CHECKING:
    from typing import Any


class Channel:
    """Messages over a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, message: list[Any]) -> None:
        """Write a message."""
        data = json.dumps(message).encode()
        left = memoryview(struct.pack(">Q", len(data)) + data)
        while left:
            left = left[os.write(self._descriptor, left) :]

    def receive(self) -> list[Any]:
        """Read a message.

        Raises:
            EOFError: the other side is gone.
        """
        (length,) = struct.unpack(">Q", self._exactly(8))
        message: list[Any] = json.loads(self._exactly(length))
        return message

    def _exactly(self, length: int) -> bytes:
        content = bytearray()
        while len(content) < length:
            more = os.read(self._descriptor, min(length - len(content), 1 << 20))
            if not more:
                raise EOFError
            content += more
        return bytes(content)


class Peer:
    """One side.

    Args:
        channel: to the other.
        verbs: what the other may ask for.
    """

    trusted = False

    def __init__(self, channel: Channel, verbs: dict[str, Callable[..., Any]]) -> None:
        self.channel = channel
        self.verbs = verbs
        self.kept: list[Any] = []
        self._lock = _thread.RLock()

    def ask(self, verb: str, /, *arguments: Any, **named: Any) -> Any:
        """What the other side gives."""
        return self.asking(False, verb, *arguments, **named)

    def asking(self, changes: bool, verb: str, /, *arguments: Any, **named: Any) -> Any:
        """The same; with `changes`, containers that are handed over become what the other side made of them."""
        with self._lock:
            self.channel.send(["do", verb, encode(arguments, self), encode(named, self), changes])
            while (message := self.hear())[0] == "do":
                self.answer(message)
        return self.outcome(message, arguments, named)

    def hear(self) -> list[Any]:
        """The next message."""
        return self.channel.receive()

    def answer(self, message: list[Any]) -> None:
        """Do what a message asks, and say what came of it."""
        raise NotImplementedError

    def outcome(self, message: list[Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The value of an answer, or its exception."""
        raise NotImplementedError

    def theirs(self, value: Any) -> Any:
        """Data of an object that came from the other side, else None."""
        raise NotImplementedError

    def hold(self, value: Any) -> list[Any]:
        """Data that stands for an object of this side."""
        raise NotImplementedError

    def held(self, tag: str, number: int, rest: list[Any]) -> Any:
        """The object of such data."""
        raise NotImplementedError

    def named(self, name: str) -> Any:
        """A built-in function or type."""
        raise NotImplementedError
