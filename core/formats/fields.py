"""The fields of a line as tensors, checked: a list of the right length, of numbers of the right kind.

Shapes: L tokens. What is no number (null, NaN, an infinity) is NaN in a column of numbers, and refused elsewhere.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .lines import Line, kind, short

DTYPES = {"d": torch.float64, "q": torch.int64}
NUMBERS = {int, float, type(None)}
LARGEST = (1 << 63) - 1


def required(line: Line, name: str) -> Any:
    """The value of a field.

    Raises:
        DataError: there is none.
    """
    if name not in line.fields:
        raise line.wrong(f"lacks `{name}`")
    return line.fields[name]


def integer(line: Line, name: str) -> int:
    """A whole number that is not below 0.

    Raises:
        DataError: it is none.
    """
    value = required(line, name)
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise line.wrong(f"`{name}` must be a whole number >= 0, got {short(value)}")
    return value


def number(line: Line, name: str) -> float:
    """A number; null is NaN.

    Raises:
        DataError: it is none.
    """
    return float(floats(Line(source=line.source, fields={name: [required(line, name)]}), name)[0])


def text(line: Line, name: str) -> str:
    """A string.

    Raises:
        DataError: it is none.
    """
    value = required(line, name)
    if not isinstance(value, str):
        raise line.wrong(f"`{name}` must be a string, got {kind(value)}")
    return value


def listed(line: Line, name: str, length: int | None = None) -> list[Any]:
    """A list, of a length where one is given.

    Raises:
        DataError: it is none, or of another length.
    """
    value = required(line, name)
    if not isinstance(value, list):
        raise line.wrong(f"`{name}` must be a list, got {kind(value)}")
    if length is not None and len(value) != length:
        raise line.wrong(f"`{name}` has {len(value)} entries, and there are {length} tokens")
    return value


def inner(line: Line, name: str) -> Line:
    """An object in a field, named in errors by the field.

    Raises:
        DataError: it is none.
    """
    value = required(line, name)
    if not isinstance(value, dict):
        raise line.wrong(f"`{name}` must be an object, got {kind(value)}")
    return Line(source=line.source, fields=value)


def ints(line: Line, name: str, length: int | None = None) -> Tensor:
    """A list of whole numbers, int64 `[L]`.

    Raises:
        DataError: an entry is none; its place is named.
    """
    values = listed(line, name, length)
    _check(line, name, values, {int}, "whole numbers")
    return _tensor(line, name, "q", values)


def floats(line: Line, name: str, length: int | None = None) -> Tensor:
    """A list of numbers, float64 `[L]`, NaN for what is no number.

    Raises:
        DataError: an entry is neither a number nor null; its place is named.
    """
    values = listed(line, name, length)
    _check(line, name, values, NUMBERS, "numbers")
    return _numbers(line, name, values)


def flags(line: Line, name: str, length: int | None = None) -> Tensor:
    """A list of truth values, or of 0 and 1, bool `[L]`.

    Raises:
        DataError: an entry is neither; its place is named.
    """
    values = listed(line, name, length)
    _check(line, name, values, {bool, int, float}, "truth values")
    column = _tensor(line, name, "d", values)
    odd = (column != 0) & (column != 1)
    if odd.any():
        raise _entry(line, name, values, int(odd.nonzero()[0]), "truth values")
    return column.bool()


def column(line: Line, name: str, length: int) -> Tensor | None:
    """A list of numbers or truth values as float64 `[L]`; None where the field is no such list."""
    values = line.fields[name]
    if not isinstance(values, list) or len(values) != length or not set(map(type, values)) <= NUMBERS | {bool}:
        return None
    return _numbers(line, name, values)


def nested(line: Line, name: str) -> Tensor:
    """Lists of lists of lists of whole numbers, int64 `[N, M, K]`; all of one length at each depth.

    Raises:
        DataError: they are not.
    """
    outer = listed(line, name)
    middle = _flat(line, name, outer)
    values = _flat(line, name, middle)
    _check(line, name, values, {int}, "whole numbers")
    shape = len(outer), len(middle) // len(outer), len(values) // len(middle)
    return _tensor(line, name, "q", values).reshape(shape)


def _flat(line: Line, name: str, lists: list[Any]) -> list[Any]:
    if not set(map(type, lists)) <= {list} or len(set(map(len, lists))) != 1 or not lists[0]:
        raise line.wrong(f"`{name}` must be lists (token, layer, expert) of one length at each depth")
    return list(chain.from_iterable(lists))


def _numbers(line: Line, name: str, values: list[Any]) -> Tensor:
    if type(None) in set(map(type, values)):
        values = [float("nan") if value is None else value for value in values]
    numbers = _tensor(line, name, "d", values)
    return numbers.masked_fill_(~numbers.isfinite(), torch.nan)


def _tensor(line: Line, name: str, code: str, values: Sequence[Any]) -> Tensor:
    if not values:
        return torch.empty(0, dtype=DTYPES[code])
    try:
        return torch.frombuffer(array(code, values), dtype=DTYPES[code])
    except OverflowError:
        raise line.wrong(f"`{name}` holds a whole number of more than 64 bits") from None


def _check(line: Line, name: str, values: list[Any], kinds: set[type], what: str) -> None:
    """All at once, for speed: the place is looked for only where there is something to find."""
    if not set(map(type, values)) <= kinds:
        place = next(i for i, value in enumerate(values) if type(value) not in kinds)
        raise _entry(line, name, values, place, what)


def _entry(line: Line, name: str, values: list[Any], place: int, what: str) -> Exception:
    return line.wrong(f"`{name}` must hold {what}, got {short(values[place])} at {place}")
