"""Numbers of responses on the axis of their tokens: what the readers of batches share.

Shapes: L tokens of a sample, the last R of them its response, M layers, K experts a token.
"""

from __future__ import annotations

from array import array
from collections.abc import MutableMapping, Sequence
from math import nan
from typing import Any

import torch
from torch import Tensor

from firstorder.core.errors import DataError
from firstorder.core.memory import available

from .words import kind

Notes = MutableMapping[str, int]
LARGEST = torch.iinfo(torch.int16).max  # id of an expert
UNKNOWN = -1  # version of the weights
SHARE = 2  # one part in so many of the free memory may be taken by the routes of a sample


def numbers(value: Any, source: str) -> Tensor:
    """A list or a tensor of numbers as float64 `[N]`, null as NaN.

    Raises:
        DataError: it is something else; `source` names the file, the row and the field.
    """
    if isinstance(value, list | tuple):
        kinds = set(map(type, value))
        if not kinds <= {int, float, bool, type(None)}:
            raise DataError(f"{source} must hold numbers; got {_kinds(value)}")
        return _packed("d", value if type(None) not in kinds else [nan if x is None else x for x in value], source)
    if not isinstance(value, Tensor) or value.ndim != 1 or value.is_complex():
        raise DataError(f"{source} must be a list of numbers; got {_what(value)}")
    return value.to(torch.float64)


def whole(value: Any, source: str) -> Tensor:
    """A list or a tensor of whole numbers as int64 `[N]`."""
    if isinstance(value, Tensor) and value.ndim == 1 and not value.is_floating_point() and not value.is_complex():
        return value.to(torch.int64)
    if isinstance(value, list) and set(map(type, value)) <= {int}:
        return _packed("q", value, source)
    read = numbers(value, source)
    if not torch.equal(read, read.trunc()) or (len(read) and float(read.abs().max()) >= 2**53):
        raise DataError(f"{source} must hold whole numbers")
    return read.to(torch.int64)


def _packed(code: str, values: Sequence[Any], source: str) -> Tensor:
    """Numbers of a list as a tensor, by way of an array, which is several times as fast as a tensor of a list."""
    dtype = torch.float64 if code == "d" else torch.int64
    try:
        held = array(code, values)
    except OverflowError:
        raise DataError(f"{source} holds a number that is out of range") from None
    return torch.frombuffer(held, dtype=dtype) if held else torch.empty(0, dtype=dtype)


def on_tokens(values: Any, mask: Tensor, source: str, response: int | None = None) -> Tensor:
    """Numbers of a response on the axis of the tokens, 0 where the mask is not set, float64 `[L]`.

    Args:
        values: `[R]`.
        mask: `[L]`.
        source: the file, the row and the field, for people.
        response: R where it is known; another length is refused.
    """
    read = numbers(values, source)
    if (response is not None and len(read) != response) or len(read) > len(mask):
        wanted = len(mask) if response is None else response
        raise DataError(f"{source} has {len(read)} entries and the response {wanted} tokens")
    full = read.new_zeros(len(mask))
    full[len(mask) - len(read) :] = read
    return torch.where(mask, full, 0.0)


def route_rows(rows: Any, length: int, source: str, notes: Notes) -> Tensor:
    """Rows from the first token on as the routes of a sample, int16 `[L, M, K]`, -1 where there is none.

    Args:
        rows: `[rows, M, K]`, of any kind of whole number; the row of the last token says nothing and is dropped.
        length: L.
        source: the file, the row and the field, for people.
        notes: to which it adds how many rows are missing or dropped.
    """
    if not isinstance(rows, Tensor) or rows.ndim != 3 or rows.is_floating_point() or not rows.shape[1] * rows.shape[2]:
        raise DataError(f"{source} must be whole numbers, tokens x layers x experts a token; got {_what(rows)}")
    if len(rows) > length:
        raise DataError(f"{source} has {len(rows)} rows and the sample {length} tokens; an engine makes one fewer")
    kept = signed(rows)[: length - 1]
    low, high = (int(x) for x in kept.aminmax()) if kept.numel() else (0, 0)
    if not -LARGEST <= low <= high <= LARGEST:
        raise DataError(f"{source} holds the experts {low} to {high}, and {LARGEST} is the largest that is read")
    if 2 * length * kept.shape[1] * kept.shape[2] > available() // SHARE:
        raise DataError(f"{source} of {length} tokens would fill half of the free memory; split the dump")
    _count(notes, "route rows of the last token, dropped", len(rows) - len(kept))
    _count(notes, "route rows missing at the end", length - 1 - len(kept))
    out = torch.full((length, *kept.shape[1:]), -1, dtype=torch.int16)
    out[: len(kept)] = kept
    return out


def signed(rows: Tensor) -> Tensor:
    """Whole numbers of a kind that can be computed with."""
    wider = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64, torch.bool: torch.uint8}
    return rows.to(wider.get(rows.dtype, rows.dtype))


def one_version(versions: Sequence[Any], length: int, notes: Notes) -> Tensor:
    """The version of the weights that sampled a response, int64 `[L]`; -1 where several did or none is a number."""
    known = [number for each in versions if (number := _version(each)) is not None]
    _count(notes, "weight versions that are no numbers", len(versions) - len(known))
    different = set(known)
    if len(different) > 1:
        _count(notes, "weight versions in one response", len(different))
    return torch.full((length,), known[0] if len(different) == 1 else UNKNOWN)


def _version(value: Any) -> int | None:
    """The number of a version, which engines give as a text; none is near 18 digits."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 18:
        return int(value)
    return value if type(value) is int and 0 <= value < 10**17 else None


def _count(notes: Notes, what: str, count: int) -> None:
    if count > 0:
        notes[what] = notes.get(what, 0) + count


def _kinds(values: Sequence[Any]) -> str:
    return ", ".join(sorted({kind(value) for value in values})[:3])


def _what(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return kind(value)
