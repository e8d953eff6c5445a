"""A folder for one process alone, so that two runs of a requeued job do not write into the same logs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import weakref
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from firstorder.core.errors import ConfigError

NAME = ".lock"  # in the folder while it is held
ABSENT = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # what a file system without locks answers

log = logging.getLogger("firstorder")


class Lock:
    """Holds a folder until it is released, or the process ends in whatever way.

    Args:
        folder: exists.

    Raises:
        ConfigError: another process holds it, which is named; or no file can be made in it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._file: int | None = _hold(self.path)
        self._left = weakref.finalize(self, os.close, self._file)

    def release(self) -> None:
        """Let others have the folder; a second call does nothing."""
        if self._file is not None and self._left.alive:
            self.path.unlink(missing_ok=True)
            self._left()
        self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_file": None}  # a copy in another process holds nothing


def _hold(path: Path) -> int:
    """An open, locked file at `path`; a file that its holder took away meanwhile is not that file."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ConfigError(f"cannot use {path.parent}: {error.strerror}; give another --out") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 200).decode(errors="replace") or "another process"
            os.close(file)
            raise ConfigError(
                f"{path.parent} is in use by {holder}; wait until it ends, or give another --out"
            ) from None
        except OSError as error:
            if error.errno not in ABSENT:
                os.close(file)
                raise ConfigError(f"cannot lock {path.parent}: {error.strerror}; give another --out") from None
            log.warning("%s lies on a file system without locks; do not start a second run in it", path.parent)
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            break
        os.close(file)
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
        os.truncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode(), 0)
    return file
