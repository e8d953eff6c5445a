"""The process that runs a program: a module of it, and answers to a judge who calls what is in it.

Whatever here the program replaces, it replaces for itself: all that leaves is values.
"""

from __future__ import annotations

import io
import operator
import sys
from types import ModuleType

from .peer import Channel, Peer
from .plain import BASES, base_of, decode, encode
from .remote import Remote, remote

TYPE_CHECKING = False  # typing takes as long to import as a test to run
if TYPE_CHECKING:
    from typing import Any

NAME = "answer"
PRINTED = 1 << 20  # characters of one call that reach the test


def load(source: str, name: str) -> ModuleType:
    """Run a program as the module of a name, which `dataclasses`, `pickle` and itself find in `sys.modules`."""
    module = ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, f"{NAME}.py", "exec", dont_inherit=True), vars(module))
    return module


def serve(source: str, descriptor: int) -> None:
    """Run a program, then answer until the judge is gone."""
    printed = sys.stdout = _Printed()
    module = load(source, NAME)
    printed.taken()
    side = Program(Channel(descriptor), module, printed)
    side.channel.send(["ready"])
    while True:
        side.answer(side.hear())


class _Printed(io.TextIOBase):
    """Keeps what is printed until it is taken, and no more than `PRINTED` characters."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._left = PRINTED

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._left > 0:
            self._parts.append(text[: self._left])
            self._left -= len(text)
        return len(text)

    def taken(self) -> str:
        """All since the last time."""
        text = "".join(self._parts)
        self._parts, self._left = [], PRINTED
        return text


class Program(Peer):
    """The side of the program."""

    def __init__(self, channel: Channel, module: ModuleType, printed: _Printed) -> None:
        super().__init__(channel, {**VERBS, "name": vars(module).__getitem__})
        self._printed = printed

    def answer(self, message: list[Any]) -> None:
        """Do what the judge asks."""
        _, verb, given, named, changes = message
        try:
            arguments, names = decode(given, self), decode(named, self)
            value = encode(self.verbs[verb](*arguments, **names), self)
            now = [encode(arguments, self), encode(names, self)] if changes else None
            changed = now if now != [given, named] else None
            self.channel.send(["return", value, self._printed.taken(), changed])
        except BaseException as error:
            classes = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
            self.channel.send(["raise", classes, said(error), self._printed.taken()])

    def outcome(self, message: list[Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The value of what the test's own function gave."""
        if message[0] == "raise":
            raise rebuilt(message[1], message[2])
        return decode(message[1], self)

    def theirs(self, value: Any) -> Any:
        """The number of a function of the test."""
        return ["yours", vars(value)["_number"]] if issubclass(type(value), Remote) else None

    def hold(self, value: Any) -> list[Any]:
        """A number for what is no plain value; one of a type that adds to a built-in one is sent along."""
        self.kept.append(value)
        number, base = len(self.kept) - 1, base_of(value)
        if base:
            return ["kept", number, encode(BASES[base](value), self)]
        return ["remote", number, "c" if callable(value) else "a" if hasattr(type(value), "__await__") else ""]

    def held(self, tag: str, number: int, rest: list[Any]) -> Any:
        """What a number stands for."""
        return self.kept[number] if tag == "yours" else remote(self, number, rest[0])

    def named(self, name: str) -> Any:
        """Any built-in function or type."""
        return getattr(__builtins__, name) if isinstance(__builtins__, ModuleType) else __builtins__[name]


def rebuilt(classes: list[str], text: str) -> BaseException:
    """The exception of the first class that takes a text, of those built in."""
    import builtins

    for name in classes:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            try:
                return kind(text)
            except TypeError:  # it takes more than a text
                continue
    return Exception(text)


def said(error: BaseException) -> str:
    """The text of an exception."""
    try:
        return str(str(error))
    except Exception:
        return ""


def called(function: Any, /, *arguments: Any, **named: Any) -> Any:
    """What a function gives."""
    return function(*arguments, **named)


def _awaited(coroutine: Any) -> Any:
    import asyncio

    async def whole() -> Any:
        return await coroutine

    return asyncio.run(whole())


VERBS: dict[str, Any] = {
    "call": called,
    "await": _awaited,
    "get": getattr,
    "set": setattr,
    "del": delattr,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
    "int": int,
    "float": float,
    "index": operator.index,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "enter": lambda context: type(context).__enter__(context),
    "exit": lambda context, *error: type(context).__exit__(context, *error),
}
