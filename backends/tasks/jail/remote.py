"""Objects that stay in another process, by their number.

Only what asks for a value crosses: attributes, calls, elements, length, text, truth. Comparison and arithmetic would
hand the other side what its object is compared with, and let it say what comes of that; they are errors.
"""

from __future__ import annotations

from functools import cache

from .peer import Peer

TYPE_CHECKING = False  # typing takes as long to import as a test to run
if TYPE_CHECKING:
    from typing import Any, NoReturn

OWN = {"_peer", "_number"}
SPOKEN = {"__name__", "__doc__"}  # of the names with underscores, all that is asked for; numpy, say, trusts others


class Remote:
    """An object of the other side."""

    def __init__(self, peer: Peer, number: int) -> None:
        vars(self).update(_peer=peer, _number=number)

    def __getattr__(self, name: str) -> Any:
        if name in OWN or (name.startswith("__") and name not in SPOKEN):
            raise AttributeError(name)
        return self._peer.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._peer.ask("del", self, name)

    def __exit__(self, *error: object) -> None:
        self._peer.ask("exit", self, *[None] * len(error))  # it hears of no error, and keeps none from the test


def _asks(verb: str) -> Any:
    def asking(self: Remote, /, *arguments: Any, **named: Any) -> Any:
        return self._peer.ask(verb, self, *arguments, **named)

    return asking


def _refuses(name: str) -> Any:
    def refusing(self: Remote, *arguments: Any) -> NoReturn:
        raise TypeError(f"{name} of an object of the program; compare its values")

    return refusing


ASKED = (
    "iter",
    "next",
    "len",
    "bool",
    "str",
    "repr",
    "int",
    "float",
    "index",
    "getitem",
    "setitem",
    "delitem",
    "enter",
)
COMPARED = ("eq", "ne", "lt", "le", "gt", "ge")
for _name in ASKED:
    setattr(Remote, f"__{_name}__", _asks(_name))
for _name in COMPARED:
    setattr(Remote, f"__{_name}__", _refuses(_name))
Remote.__hash__ = None  # type: ignore[assignment]


class Function(Remote):
    """A function or a class of the other side."""

    __call__ = _asks("call")


class Coroutine(Remote):
    """What the other side runs to its end when it is awaited."""

    def send(self, value: Any) -> NoReturn:
        """Run it."""
        raise StopIteration(self._peer.ask("await", self))

    def __next__(self) -> NoReturn:
        self.send(None)

    def throw(self, *error: Any) -> NoReturn:
        """Give it up."""
        raise error[0]

    def close(self) -> None:
        """Nothing: the other side ends."""

    def __await__(self) -> Any:
        yield from ()
        return self._peer.ask("await", self)


def remote(peer: Peer, number: int, kind: str) -> Remote:
    """The object of a number; `kind` is c, what can be called, a, what can be awaited, or neither."""
    return {"c": Function, "a": Coroutine}.get(kind, Remote)(peer, number)


def kept(peer: Peer, number: int, value: Any) -> Any:
    """A value whose own type adds to a built-in one: that value in what is built in, the other side's in the rest."""
    base: Any = type(value)
    wrapped = _adding(base)(value)
    vars(wrapped).update(_peer=peer, _number=number)
    return wrapped


@cache
def _adding(base: type) -> type:
    asked = {"__getattr__": Remote.__getattr__, "__str__": _asks("str"), "__repr__": _asks("repr")}
    return type(base.__name__, (base,), asked)
