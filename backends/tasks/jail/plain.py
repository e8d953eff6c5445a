"""Values as JSON and back: built-in types and a few of the standard library's, exactly; what is none is held.

None, booleans, texts, floats and integers of 63 bits stand for themselves; all else is a list that begins with a tag.
Reading builds new objects of known types from data; it runs nothing that the sender wrote.
"""

from __future__ import annotations

import builtins
import importlib
import re
from collections.abc import Callable

TYPE_CHECKING = False  # typing takes as long to import as a test to run
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Holder(Protocol):
        """One side: it gives numbers to objects that stay.

        What is `trusted` may name any built-in function for the other to call; the rest names types alone, and its
        functions stay with it.
        """

        trusted: bool

        def theirs(self, value: Any) -> Any:
            """Data of an object that came from the other side, else None."""

        def hold(self, value: Any) -> list[Any]:
            """Data that stands for an object of this side."""

        def held(self, tag: str, number: int, rest: list[Any]) -> Any:
            """The object of such data."""

        def named(self, name: str) -> Any:
            """A built-in function or type."""


SMALL = 2**62
SEVERAL: dict[str, type] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
VALUES: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "builtins.complex": lambda x: (x.real, x.imag),
    "builtins.range": lambda x: (x.start, x.stop, x.step),
    "builtins.bytearray": lambda x: (bytes(x),),
    "collections.deque": lambda x: (list(x), x.maxlen),
    "collections.Counter": lambda x: (dict(x),),
    "collections.OrderedDict": lambda x: (list(x.items()),),
    "collections.defaultdict": lambda x: (x.default_factory, dict(x)),
    "decimal.Decimal": lambda x: (str(x),),
    "fractions.Fraction": lambda x: (x.numerator, x.denominator),
    "datetime.date": lambda x: (x.year, x.month, x.day),
    "datetime.timedelta": lambda x: (x.days, x.seconds, x.microseconds),
}
"""What rebuilds a value of these types, as arguments of the type."""
BASES: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: bytes.__bytes__,
    list: lambda x: list(list.__iter__(x)),
    tuple: lambda x: tuple(tuple.__iter__(x)),
    set: lambda x: set(set.__iter__(x)),
    frozenset: lambda x: frozenset(frozenset.__iter__(x)),
    dict: lambda x: dict(dict.items(x)),
}
"""The value of an object of a subclass, by the built-in type's own methods."""
TYPES = {t.__name__ for t in (*BASES, bool, complex, range, bytearray)}  # that a program may name
TYPES |= {name for name, each in vars(builtins).items() if isinstance(each, type) and issubclass(each, BaseException)}
NUMBERS = re.compile(r"[<>=|][biufcSU]\d+")  # element types of an array that hold nothing but numbers and texts


def encode(value: Any, side: Holder) -> Any:
    """Data of a value."""
    kind = type(value)
    if value is None or kind in (bool, float, str):
        return value
    if kind is int:
        return value if -SMALL < value < SMALL else ["int", hex(value)]
    if kind in (list, tuple, set, frozenset):
        return [kind.__name__, *[encode(each, side) for each in value]]
    if kind is dict:
        return ["dict", *[[encode(k, side), encode(v, side)] for k, v in value.items()]]
    if kind is bytes:
        return ["bytes", value.hex()]
    return _other(value, kind, side)


def decode(data: Any, side: Holder) -> Any:
    """The value of data.

    Raises:
        ValueError, TypeError: it is none; or whatever else a type raises at arguments that are wrong.
    """
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    if not isinstance(data, list) or not data:
        raise ValueError("no value")
    tag, *rest = data
    if tag in SEVERAL:
        return SEVERAL[tag](decode(each, side) for each in rest)
    if tag == "dict":
        return {decode(k, side): decode(v, side) for k, v in rest}
    if tag == "int":
        return int(rest[0], 16)
    if tag == "bytes":
        return bytes.fromhex(rest[0])
    if tag == "builtin":
        return side.named(rest[0])
    if tag == "array":
        return _array(rest[0], decode(rest[1], side))
    if tag in VALUES:
        module, _, name = tag.rpartition(".")
        return getattr(importlib.import_module(module), name)(*(decode(each, side) for each in rest))
    return side.held(tag, int(rest[0]), rest[1:])


def base_of(value: Any) -> type | None:
    """The built-in type that an object's type is derived from."""
    return next((base for base in BASES if issubclass(type(value), base)), None)


def _other(value: Any, kind: type, side: Holder) -> Any:
    if (theirs := side.theirs(value)) is not None:
        return theirs
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name in VALUES:
        return [name, *[encode(each, side) for each in VALUES[name](value)]]
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        if name != "numpy.ndarray":
            return encode(value.tolist(), side)
        if NUMBERS.fullmatch(value.dtype.str):
            return ["array", value.dtype.str, encode(value.tolist(), side)]
    called = getattr(value, "__name__", None)
    if isinstance(called, str) and getattr(builtins, called, None) is value and (called in TYPES or side.trusted):
        return ["builtin", called]
    return side.hold(value)


def _array(kind: str, elements: Any) -> Any:
    if not NUMBERS.fullmatch(kind):
        raise ValueError("no array")
    import numpy

    return numpy.array(elements, dtype=kind)
