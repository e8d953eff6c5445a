"""The fields of a TensorDict out of the records of its pickle, in both forms that it is written in.

A plain one holds its fields by name. A consolidated one holds one storage of bytes, and where in it each field lies.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from firstorder.core.errors import DataError

from . import names
from .arrays import cast, dtype
from .machine import Inert
from .torch_files import Loaded

VALUES, OFFSETS, LENGTHS = "<NJT_VALUES>", "<NJT_OFFSETS>", "<NJT_LENGTHS>"


def fields(value: Any, loaded: Loaded, wanted: Collection[str]) -> dict[str, Any]:
    """The fields by their names: a tensor, a list of tensors where it is ragged, a list where it holds objects.

    Args:
        value: the record of the TensorDict.
        loaded: the file that it is in.
        wanted: the fields that are read.

    Raises:
        DataError: it is no TensorDict, or claims what the file does not hold.
    """
    if isinstance(value, Inert) and isinstance(value.args, tuple) and len(value.args) == 2:
        if value.name == names.CONSOLIDATED:
            return _consolidated(value.args[0], value.args[1], loaded, wanted)
        if value.name == names.MADE and isinstance(value.args[1], dict):
            held = value.args[1].get("_tensordict")
            if isinstance(held, dict):
                return {name: _field(held[name], loaded, name) for name in wanted if name in held}
    raise DataError(f"{loaded.source}: a TensorDict is expected; write the dump anew")


def _field(value: Any, loaded: Loaded, name: str) -> Any:
    if isinstance(value, Inert):
        if value.name == names.STACK:
            return _stack(value)
        if value.name == names.SINGLE:
            return _single(value)
        inner = loaded.tensor(value, f"`{name}`")
        if isinstance(inner, Inert) and inner.name == names.JAGGED:
            return _jagged(inner, loaded, name)
        if isinstance(inner, Inert) and inner.name == names.STRIDED:
            return _strided(inner, loaded, name)
        return inner
    return value


def _stack(value: Inert) -> list[Any]:
    held = value.state.get("tensordicts") if isinstance(value.state, dict) else None
    return [_single(each) for each in held] if isinstance(held, list) else []


def _single(value: Any) -> Any:
    state = value.state if isinstance(value, Inert) else None
    held = state.get("non_tensordict") if isinstance(state, dict) else None
    return held.get("data") if isinstance(held, dict) else None


def _jagged(value: Inert, loaded: Loaded, name: str) -> list[Tensor]:
    """A nested tensor whose rows lie one after the other."""
    args = value.args[0] if isinstance(value.args, tuple) and value.args else None
    if not isinstance(args, dict) or args.get("_ragged_idx", 1) != 1:
        raise _odd(loaded, name)
    parts = [loaded.tensor(args.get(key), f"`{name}`") for key in ("values", "offsets", "lengths")]
    return _rows(parts[0], parts[1], parts[2], loaded, name)


def _rows(values: Any, offsets: Any, lengths: Any, loaded: Loaded, name: str) -> list[Tensor]:
    known = all(isinstance(each, Tensor) and each.ndim for each in (values, offsets))
    if not known or offsets.is_floating_point() or not (lengths is None or isinstance(lengths, Tensor)):
        raise _odd(loaded, name)
    starts: list[int] = offsets.tolist()
    stops = starts[1:] if lengths is None else [a + b for a, b in zip(starts, lengths.tolist(), strict=False)]
    if any(not 0 <= start <= stop <= len(values) for start, stop in zip(starts, stops, strict=False)):
        raise _odd(loaded, name)
    return [values[start:stop] for start, stop in zip(starts, stops, strict=False)]


def _strided(value: Inert, loaded: Loaded, name: str) -> list[Tensor]:
    """A nested tensor whose rows have sizes, strides and a place in a buffer."""
    if not isinstance(value.args, tuple) or len(value.args) != 4:
        raise _odd(loaded, name)
    buffer, sizes, strides, places = (loaded.tensor(each, f"`{name}`") for each in value.args)
    if (
        not all(isinstance(each, Tensor) and each.ndim for each in (buffer, sizes, strides))
        or sizes.shape != strides.shape
    ):
        raise _odd(loaded, name)
    offsets = places.tolist() if isinstance(places, Tensor) else list(places)
    rows = []
    for size, stride, offset in zip(sizes.tolist(), strides.tolist(), offsets, strict=False):
        count = 1
        plain: list[int] = []
        for extent in reversed(size):
            plain.insert(0, count)
            count *= extent
        if min(size, default=0) < 0 or stride != plain or not 0 <= offset <= offset + count <= buffer.numel():
            raise _odd(loaded, name)
        rows.append(buffer.flatten()[offset : offset + count].reshape(size))
    return rows


def _consolidated(metadata: Any, storage: Any, loaded: Loaded, wanted: Collection[str]) -> dict[str, Any]:
    bytes_ = loaded.tensor(storage, "its storage")
    leaves = metadata.get("leaves") if isinstance(metadata, dict) else None
    if not isinstance(leaves, dict) or not isinstance(bytes_, Tensor) or bytes_.ndim != 1 or bytes_.itemsize != 1:
        raise _odd(loaded, "leaves")
    keys = [prefix + name for name in wanted for prefix in ("", VALUES, OFFSETS, LENGTHS)]
    read = {key: _leaf(leaves[key], bytes_, loaded, key) for key in keys if key in leaves}
    found: dict[str, Any] = {name: read[name] for name in wanted if name in read}
    for name in wanted:
        if VALUES + name in read:
            parts = [read.get(prefix + name) for prefix in (VALUES, OFFSETS, LENGTHS)]
            found[name] = _rows(parts[0], parts[1], parts[2], loaded, name)
    return found


def _leaf(leaf: Any, bytes_: Tensor, loaded: Loaded, key: str) -> Tensor:
    if not isinstance(leaf, tuple | list) or len(leaf) not in (5, 6):
        raise _odd(loaded, key)
    kind, (start, stop) = dtype(leaf[0]), leaf[2:4]
    if kind is None or type(start) is not int or type(stop) is not int or not 0 <= start <= stop <= len(bytes_):
        raise _odd(loaded, key)
    return cast(bytes_[start:stop], kind, leaf[1], f"{loaded.source} `{key}`")


def _odd(loaded: Loaded, name: str) -> DataError:
    return DataError(f"{loaded.source}: what it says of `{name}` is not understood; write the dump anew")
