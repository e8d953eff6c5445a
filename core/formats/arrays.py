"""Arrays and tensors out of the records of a pickle, as views of the bytes of the file.

What a record claims (a length, strides, an offset) is checked against the bytes that are there.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from firstorder.core.errors import DataError

from . import names
from .machine import Inert

Storage = Callable[[str], memoryview]  # the bytes of a storage by its key
KINDS = {
    **{f"i{size}": f"int{8 * size}" for size in (1, 2, 4, 8)},
    **{f"u{size}": f"uint{8 * size}" for size in (1, 2, 4, 8)},
    **{f"f{size}": f"float{8 * size}" for size in (2, 4, 8)},
    "b1": "bool",
}
DIMENSIONS = 8  # of an array


def none(key: str) -> memoryview:
    """The storages of a pickle that has none."""
    raise DataError(f"the storage {key} is not in it")


def dtype(name: object) -> torch.dtype | None:
    """The dtype of a name like `float32`, `torch.float32`, `<f4`; None where it is none of numbers."""
    text = name.removeprefix("torch.") if isinstance(name, str) else ""
    text = KINDS.get(text.lstrip("<|="), text)
    return getattr(torch, text) if text in (*names.DTYPES, *names.FLOATS) else None


def array(value: Any, source: str, storage: Storage = none) -> Any:
    """A tensor where a value is an array of numbers, a list where it is one of objects, else the value itself.

    Args:
        value: out of a pickle.
        source: the file and the field, for people.
        storage: the storages of the file, where it has any.

    Raises:
        DataError: the array claims more than the file holds, or a kind of number that is not read.
    """
    if not isinstance(value, Inert):
        return value
    if value.name == names.TYPED:
        return array(_retyped(value, source), source, storage)
    if value.name in names.TENSOR or value.name == names.TENSOR_OF_DTYPE:
        return _tensor(value, source, storage)
    if value.name in names.ARRAY and value.state is not None:
        return _numpy(value, source)
    if value.name in names.BUFFER:
        return _frombuffer(value, source)
    if value.name in names.SCALAR:
        return _scalar(value, source)
    return value


def view(data: Any, kind: torch.dtype, shape: Any, source: str, fortran: bool = False) -> Tensor:
    """A tensor of the bytes of an array.

    Args:
        data: its bytes.
        kind: of its numbers.
        shape: its sizes, which must fill the bytes exactly.
        source: the file and the field, for people.
        fortran: whether the first axis varies fastest.
    """
    sizes = _sizes(shape, source)
    bytes_ = _bytes(data, source)
    if len(bytes_) != prod(sizes) * kind.itemsize:
        raise DataError(
            f"{source}: {' x '.join(map(str, sizes)) or 'one'} numbers of {kind.itemsize} bytes are announced and "
            f"{len(bytes_):,} bytes are there; write the dump anew"
        )
    flat = _flat(bytes_, kind, prod(sizes))
    return flat.reshape(sizes[::-1]).permute(*range(len(sizes) - 1, -1, -1)) if fortran else flat.reshape(sizes)


def cast(data: Tensor, kind: torch.dtype, shape: Any, source: str) -> Tensor:
    """Bytes that are a tensor already, uint8 `[N]`, as numbers; more bytes than the sizes need are padding."""
    sizes = _sizes(shape, source)
    needed = prod(sizes) * kind.itemsize
    if len(data) < needed:
        raise DataError(f"{source}: {needed:,} bytes are announced and {len(data):,} are there; write the dump anew")
    own = data[:needed]
    if kind is torch.bool:
        return (own != 0).reshape(sizes)
    return (own.clone() if own.data_ptr() % kind.itemsize else own).view(kind).reshape(sizes)


def _flat(data: memoryview, kind: torch.dtype, count: int) -> Tensor:
    """The first `count` numbers; a bool is whatever is not 0, as other bytes are none."""
    if not count:
        return torch.empty(0, dtype=kind)
    part = data[: count * kind.itemsize]
    own = bytearray(part) if part.readonly else part  # a tensor must be writable, or torch warns
    numbers = torch.frombuffer(own, dtype=torch.uint8)
    if kind is torch.bool:
        return numbers != 0
    if numbers.data_ptr() % kind.itemsize:
        numbers = numbers.clone()
    return numbers.view(kind)


def _tensor(value: Inert, source: str, storage: Storage) -> Any:
    args = value.args
    if not isinstance(args, tuple) or len(args) < 4 or not isinstance(args[0], Inert):
        raise _odd(source)
    where = args[0].args
    if args[0].name != "persistent" or not isinstance(where, tuple) or len(where) != 5 or where[0] != "storage":
        return value  # of another container: it is of no use here
    offset, sizes, strides = args[1], _sizes(args[2], source), _sizes(args[3], source)
    kind = dtype(names.STORAGES.get(_named(where[1]), _named(where[1])))
    if value.name == names.TENSOR_OF_DTYPE:
        kind = dtype(_named(args[6])) if len(args) > 6 else None
    if kind is None:
        raise DataError(f"{source}: a storage of {_named(where[1]) or 'no name'} is not read; write plain tensors")
    if type(offset) is not int or offset < 0 or len(sizes) != len(strides) or not isinstance(where[2], str):
        raise _odd(source)
    bytes_ = storage(where[2])
    held = len(bytes_) // kind.itemsize
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if prod(sizes) and (last >= held or prod(sizes) > held):
        raise DataError(
            f"{source}: a tensor of {' x '.join(map(str, sizes))} is announced and its storage holds {held:,} numbers; "
            "write the dump anew"
        )
    if not prod(sizes):
        return torch.empty(sizes, dtype=kind)
    first = offset * kind.itemsize
    return _flat(bytes_[first:], kind, last - offset + 1).as_strided(sizes, strides)


def _numpy(value: Inert, source: str) -> Any:
    state = value.state
    if not isinstance(state, tuple) or len(state) != 5:
        raise _odd(source)
    _, shape, kind, fortran, data = state
    return _filled(data, kind, shape, bool(fortran), source)


def _frombuffer(value: Inert, source: str) -> Any:
    if not isinstance(value.args, tuple) or len(value.args) != 4:
        raise _odd(source)
    data, kind, shape, order = value.args
    return _filled(data, kind, shape, order == "F", source)


def _scalar(value: Inert, source: str) -> Any:
    if not isinstance(value.args, tuple) or len(value.args) != 2:
        raise _odd(source)
    number = _filled(value.args[1], value.args[0], (), False, source)
    return number.item() if isinstance(number, Tensor) else number


def _filled(data: Any, kind: Any, shape: Any, fortran: bool, source: str) -> Any:
    if isinstance(data, list):  # an array of objects
        return data
    code = kind.args[0] if isinstance(kind, Inert) and isinstance(kind.args, tuple) and kind.args else None
    order = kind.state[1] if isinstance(kind, Inert) and isinstance(kind.state, tuple) and len(kind.state) > 1 else "<"
    known = dtype(code)
    if known is None:
        return Inert(name=f"an array of {code}")
    if order == ">" and known.itemsize > 1:
        raise DataError(f"{source}: its numbers are big-endian, which is not read; write the dump on this machine")
    return view(data, known, shape, source, fortran)


def _retyped(value: Inert, source: str) -> Inert:
    """A tensor that carries attributes: the function that rebuilds it and its arguments, without them."""
    args = value.args
    if not isinstance(args, tuple) or len(args) < 3 or not isinstance(args[0], Inert):
        raise _odd(source)
    if args[0].name == names.TYPED:
        raise _odd(source)
    return Inert(name=args[0].name, args=args[2])


def _bytes(data: Any, source: str) -> memoryview:
    """Bytes, or the text that protocol 2 writes for them, a character a byte."""
    if isinstance(data, Inert) and data.name == names.ENCODED and isinstance(data.args, tuple) and data.args:
        data = data.args[0]
        if isinstance(data, str):
            return _latin(data, source)
        if isinstance(data, Inert) and data.name == "text":
            text: memoryview = data.args
            return text if bytes(text).isascii() else _latin(str(text, "utf-8", "replace"), source)
    if isinstance(data, Inert) and data.name in names.EMPTY and data.args == ():
        return memoryview(b"")
    if not isinstance(data, memoryview):
        raise _odd(source)
    return data


def _latin(text: str, source: str) -> memoryview:
    try:
        return memoryview(text.encode("latin-1"))
    except UnicodeEncodeError:
        raise DataError(f"{source}: the bytes of its array are no bytes; write the dump anew") from None


def _named(value: Any) -> str:
    return value.name.removeprefix("torch.") if isinstance(value, Inert) else ""


def _sizes(value: Any, source: str) -> tuple[int, ...]:
    if isinstance(value, Inert) and value.name == "torch.Size" and isinstance(value.args, tuple) and value.args:
        value = value.args[0]
    if not isinstance(value, tuple | list) or len(value) > DIMENSIONS:
        raise _odd(source)
    if any(type(size) is not int or not 0 <= size < 1 << 48 for size in value):
        raise _odd(source)
    return tuple(value)


def _odd(source: str) -> DataError:
    return DataError(f"{source}: what it says of an array is not understood; write the dump anew")
