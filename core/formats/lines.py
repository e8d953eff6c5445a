"""JSON lines of a file that is not trusted, an object at a time; a line takes at most about 2 GiB of memory.

A line is refused with its number where it is longer than the limit, no UTF-8, no JSON, no object, or names a field
twice. NaN and infinities, which JSON lacks and some writers write, are read as NaN.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from firstorder.core.errors import DataError

LINE = 1 << 28  # bytes, 256 MiB: 32k tokens of 48 layers of 8 experts take 64 MiB where ids are int32 in base64
NESTED = 1 << 23  # lists and objects of a line: an empty one, of 3 bytes, takes 64 of memory
VALUES = 1 << 25  # of a line: a number, of 2 bytes, takes 32; ids of 87k tokens, 48 layers, 8 experts as lists
HEAD = 1 << 12  # bytes of a file that are looked at to tell its format


@dataclass(frozen=True, kw_only=True)
class Line:
    """An object of a file: `source` says where, `FILE line N`, and `fields` what it holds."""

    source: str
    fields: dict[str, Any]

    def wrong(self, what: str, remedy: str = "write the dump anew") -> DataError:
        """The error that names where it is."""
        return DataError(f"{self.source}: {what}; {remedy}")


def lines(path: Path, limit: int = LINE) -> Iterator[Line]:
    """The objects of a file in order, blank lines left out.

    Args:
        path: a regular file.
        limit: bytes of a line, without its end; of a longer one no more is read.

    Raises:
        DataError: the file or a line cannot be read, or the file changed meanwhile; the line is named.
    """
    number = 0
    try:
        with open(path, "rb", opener=_waiting_for_nobody) as file:
            before = _state(path, file)
            left = before[0]
            while left > 0:
                number += 1
                raw = file.readline(min(limit + 1, left))
                left -= len(raw)
                whole = raw.endswith(b"\n")
                if not raw or (not whole and len(raw) <= limit and _state(path, file) != before):
                    raise _changed(path, number)
                if len(raw) - whole > limit:
                    raise _too_long(path, number, limit)
                if raw.strip():
                    yield _parsed(f"{path} line {number}", raw, whole)
            if _state(path, file) != before:
                raise _changed(path, number)
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise DataError(f"{path} line {number + 1}: {what}; give a file that can be") from None


def head(path: Path, size: int = HEAD) -> bytes | None:
    """The first bytes of a regular file, None where there is none that can be read; it never raises."""
    try:
        with open(path, "rb", opener=_waiting_for_nobody) as file:
            return file.read(size) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except (OSError, ValueError):
        return None


def _waiting_for_nobody(path: str, flags: int) -> int:
    """A pipe that nobody writes to would be waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _state(path: Path, file: BinaryIO) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path} line 1: not a regular file; give a file")
    return found.st_size, found.st_mtime_ns


def _changed(path: Path, number: int) -> DataError:
    return DataError(f"{path} line {number}: the file changed while it was read; wait until it is written")


def _too_long(path: Path, number: int, limit: int) -> DataError:
    size = f"{limit / 2**20:g} MiB" if limit >= 1 << 20 else f"{limit} bytes"
    return DataError(f"{path} line {number}: longer than {size}; is it JSON lines, one object a line?")


def _parsed(source: str, raw: bytes, whole: bool) -> Line:
    if raw.count(b"[") + raw.count(b"{") > NESTED or raw.count(b",") >= VALUES:
        raise DataError(
            f"{source}: more than {NESTED:,} lists and objects or {VALUES:,} values; write fewer tokens a line"
        )
    try:
        value = json.loads(raw.decode(), object_pairs_hook=partial(_unique, source), parse_constant=_nan)
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: byte {error.start + 1} is no UTF-8; write the dump anew") from None
    except json.JSONDecodeError as error:
        what = f"no JSON: {error.msg} at character {error.pos + 1}" if whole else "the last line is cut off"
        raise DataError(f"{source}: {what}; write the dump anew, or remove the line") from None
    except RecursionError:
        raise DataError(f"{source}: nested too deeply; write the dump anew") from None
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{source}: a whole number with too many digits; write the dump anew") from None
    if not isinstance(value, dict):
        raise DataError(f"{source}: must be an object, got {kind(value)}; is it JSON lines, one object a line?")
    return Line(source=source, fields=value)


def _unique(source: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        most, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise DataError(f"{source}: names {short(most)} twice; write the dump anew")
    return fields


def _nan(_: str) -> float:
    return math.nan


def kind(value: Any) -> str:
    """What JSON calls a value, for people."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", int: "a whole number"}
    return names.get(type(value), "null" if value is None else "a number")


def short(value: Any) -> str:
    """A value for an error, on one line and not long."""
    plain = value[:40] if isinstance(value, str) else value
    text = ascii(plain) if isinstance(value, (str, bool, int, float)) else kind(value)
    return text if len(text) <= 40 else f"{text[:36]} ..."
