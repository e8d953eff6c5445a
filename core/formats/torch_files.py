"""Files of `torch.save`: a ZIP archive of a pickle and of the storages of its tensors, none of them compressed.

The archive is read here and its pickle by `unpickle`, so no code of the file is ever run, nothing is unpacked, and a
tensor is a view of the bytes that were read. A storage may be of any device; it is read as bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from firstorder.core.errors import DataError
from firstorder.core.memory import available

from . import arrays, unpickle
from .machine import Inert
from .names import DICTS
from .words import kind, said, short

END, END_64, LOCATOR, CENTRAL, LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
TAIL = 22 + (1 << 16)  # bytes in which the end record of an archive must be: it and a comment
MEMBERS = 1 << 20  # of an archive; a step of 1024 responses with 12 tensors each has some 12,000
PICKLE = "data.pkl"
HEAD = 4096  # bytes by which a file is recognised: its pickle is its first member


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A file of `torch.save`.

    Args:
        value: what was saved; tensors are records, see `tensor`.
        source: the file.
        storages: the bytes of each, by its key.
        size: bytes of the file.
    """

    value: Any
    source: str
    storages: Mapping[str, memoryview]
    size: int

    def tensor(self, value: Any, what: str = "") -> Any:
        """The tensor or the array of a record, see `arrays.array`; `what` is the field, for people."""
        return arrays.array(value, f"{self.source} {what}".rstrip(), self.storage)

    def storage(self, key: str) -> memoryview:
        """The bytes of a storage."""
        if key not in self.storages:
            raise DataError(f"{self.source}: it has no storage {said(key)}, which a tensor is in; write the dump anew")
        return self.storages[key]


def load(path: Path) -> Loaded:
    """What a file of `torch.save` holds.

    Raises:
        DataError: it cannot be read, is damaged or compressed, or its pickle asks for a class that no dump needs.
    """
    return parse(contents(path), str(path))


def parse(data: memoryview, source: str) -> Loaded:
    """What the bytes of `torch.save` hold; see `load`."""
    try:
        members = _members(data, source)
    except struct.error:
        raise DataError(f"{source} is no whole file of torch.save: its directory is cut off; write it anew") from None
    folder = next((name[: -len(PICKLE)] for name in members if name.endswith(f"/{PICKLE}")), None)
    if folder is None:
        raise DataError(f"{source} is a ZIP archive without {PICKLE}, so torch.save did not write it")
    if bytes(members.get(f"{folder}byteorder", b"little")) != b"little":
        raise DataError(f"{source} was written by a big-endian machine, which is not read; write it on this one")
    stored = f"{folder}data/"
    return Loaded(
        value=unpickle.read(members[f"{folder}{PICKLE}"], source),
        source=source,
        storages={name[len(stored) :]: held for name, held in members.items() if name.startswith(stored)},
        size=len(data),
    )


def contents(path: Path) -> memoryview:
    """The bytes of a file, which must fit into the free memory.

    Not mapped: a file that is cut while it is mapped ends the process that reads it.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size > available():
                raise DataError(f"{path} has {size / 2**30:.3g} GiB, more than the free memory; split the dump")
            try:
                held = bytearray(size)
            except MemoryError:
                raise DataError(f"{path} has {size / 2**30:.3g} GiB, which are not given; split the dump") from None
            if file.readinto(held) != size:
                raise DataError(f"{path} was cut while it was read; wait until it is written")
            return memoryview(held)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; give a file that can be") from None


def aligned(data: memoryview, size: int = 8) -> memoryview:
    """The same bytes at an address that is a multiple of `size`, so that a tensor can be a view of them.

    They are moved within what was read, by less than `size` bytes, over the opcode and the length that stood before
    them; so this is done once, before anything else is made of them.
    """
    if not isinstance(data.obj, bytearray) or not len(data):
        return data
    start, address = (torch.frombuffer(each, dtype=torch.uint8).data_ptr() for each in (data.obj, data))
    place, moved = address - start, address % size
    if not moved or place < moved:
        return data
    read = memoryview(data.obj)
    read[place - moved : place - moved + len(data)] = data
    return read[place - moved : place - moved + len(data)]


def head(path: Path) -> bytes:
    """The first bytes of a file of `torch.save`, which are those of its pickle; nothing where it is none."""
    try:
        with path.open("rb") as file:
            first = file.read(HEAD)
    except OSError:
        return b""
    return first if first[:4] == LOCAL and f"/{PICKLE}".encode() in first[:1024] else b""


def mapping(value: Any, source: str) -> dict[Any, Any]:
    """A dict, or an ordered one as a dict.

    Raises:
        DataError: it is neither.
    """
    if isinstance(value, Inert) and value.name in DICTS:
        pairs = [pair for pair in value.items if isinstance(pair, tuple) and len(pair) == 2]
        return {key: item for key, item in pairs if isinstance(key, str | int)}
    if not isinstance(value, dict):
        raise DataError(f"{source}: a dict is expected, got {kind(value)}; is it another dump?")
    return value


def _members(data: memoryview, source: str) -> dict[str, memoryview]:
    """The members of an archive by their names, each a view of the file."""
    count, place = _directory(data, source)
    members = {}
    for _ in range(count):
        fields = struct.unpack_from("<4s6H3L5H2L", data, place)
        signature, method, packed, size, name_size, extra_size, comment, offset = (
            fields[i] for i in (0, 4, 8, 9, 10, 11, 12, 16)
        )
        if signature != CENTRAL:
            raise _damaged(source, "its directory has another signature")
        start = place + 46
        name = bytes(data[start : start + name_size]).decode("utf-8", "replace")
        extra = data[start + name_size : start + name_size + extra_size]
        size, packed, offset = _wide(extra, size, packed, offset)
        if method or size != packed:
            raise DataError(
                f"{source}: {short(name)} is compressed, from {packed:,} to {size:,} bytes, and torch.save never "
                "compresses; unpack the archive and write it again without"
            )
        members[name] = _content(data, offset, size, name, source)
        place = start + name_size + extra_size + comment
    return members


def _directory(data: memoryview, source: str) -> tuple[int, int]:
    """How many members an archive has, and where its directory starts."""
    tail = bytes(data[-TAIL:])
    at = tail.rfind(END)
    if at < 0:
        raise _damaged(source, "it has no end record")
    end = len(data) - len(tail) + at
    count, size, place = struct.unpack_from("<10xH2L", data, end)
    if (count == 0xFFFF or place == 0xFFFFFFFF) and end >= 20 and bytes(data[end - 20 : end - 16]) == LOCATOR:
        (far,) = struct.unpack_from("<8xQ", data, end - 20)
        if far > len(data) or bytes(data[far : far + 4]) != END_64:
            raise _damaged(source, "its long end record is not where it should be")
        count, size, place = struct.unpack_from("<32x3Q", data, far)
    if count > MEMBERS or place + size > len(data) or size < 46 * count:
        raise _damaged(source, f"{count:,} members are announced")
    return count, place


def _wide(extra: memoryview, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Sizes and offset, those that need 64 bits out of the extra field."""
    values, place = [size, packed, offset], 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, place)
        if kind == 1:
            inner = place + 4
            for i, value in enumerate(values):
                if value == 0xFFFFFFFF:
                    (values[i],) = struct.unpack_from("<Q", extra, inner)
                    inner += 8
        place += 4 + length
    return values[0], values[1], values[2]


def _content(data: memoryview, offset: int, size: int, name: str, source: str) -> memoryview:
    signature, name_size, extra_size = (
        struct.unpack_from("<4s22x2H", data, offset) if offset < len(data) else ("", 0, 0)
    )
    start = offset + 30 + name_size + extra_size
    if signature != LOCAL or start + size > len(data):
        raise _damaged(source, f"{size:,} bytes of {short(name)} are announced and are not there")
    return data[start : start + size]


def _damaged(source: str, what: str) -> DataError:
    return DataError(f"{source} is no whole file of torch.save: {what}; write the dump anew")
