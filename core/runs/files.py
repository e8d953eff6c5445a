"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from firstorder.core.errors import ConfigError, DataError

SHORT = 32  # characters of a name that stand in that of its temporary file, which must not be too long itself
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` through a temporary file in the same folder; an interruption leaves the old file.

    A device or a pipe cannot be replaced and is written to directly.

    Raises:
        ConfigError: the folder does not exist or cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)
            return
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:SHORT]}.")
    except OSError as error:
        remedy = "free some space" if error.errno in FULL else "give a file in a folder that exists"
        raise ConfigError(f"cannot write {path}: {error.strerror}; {remedy}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if not isinstance(error, OSError):
            raise
        remedy = "free some space" if error.errno in FULL else "give a file that can be replaced"
        raise ConfigError(f"cannot write {path}: {error.strerror}; {remedy}") from None


def shipped_text(file: Path, what: str) -> str:
    """The text of a file of the package.

    Raises:
        DataError: it cannot be read; `what` it should hold is named.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{file} holds no {what} ({error}); install firstorder again") from None


def check_folder(out: Path) -> None:
    """Refuse a place for a folder that is taken, before the work is done.

    Raises:
        ConfigError: it is a file, or a folder that is not empty, or it cannot be made.
    """
    try:
        if out.exists() and not out.is_dir():
            raise ConfigError(f"--out {out} is a file; give a folder")
        if out.is_dir() and any(out.iterdir()):
            raise ConfigError(f"--out {out} is not empty; give a new folder")
        check_place(out)
    except OSError as error:
        raise ConfigError(f"cannot write --out {out}: {error.strerror}; give another folder") from None


def check_place(path: Path) -> None:
    """Refuse a file or folder whose nearest folder that exists takes nothing new.

    Raises:
        OSError: what the system says to a try.
    """
    parent = next(each for each in path.absolute().parents if each.exists())
    tempfile.TemporaryDirectory(dir=parent, prefix=f".{path.name[:SHORT]}.").cleanup()


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into, which takes its place when the block ends without an error.

    Raises:
        ConfigError: the folder cannot be written; nothing is left behind.
    """
    target = out.resolve()
    partial = target.parent / f".{target.name[:SHORT]}.{os.getpid()}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        os.replace(partial, target)
    except OSError as error:
        raise ConfigError(f"cannot write --out {out}: {error.strerror}; give another folder") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    current = os.umask(0)
    os.umask(current)
    return current


def to_json(value: Mapping[str, Any], indent: int | None = 2) -> str:
    """JSON with a final newline, on one line without `indent`; NaN and infinities, which JSON lacks, become null."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
