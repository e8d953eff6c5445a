"""Memory of this machine and of this process, in bytes."""

from __future__ import annotations

import os
import resource
from pathlib import Path

MEMINFO, STATUS = Path("/proc/meminfo"), Path("/proc/self/status")


def available() -> int:
    """Bytes of memory that can be taken without swapping."""
    kibibytes = _kibibytes(MEMINFO, "MemAvailable:")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if kibibytes is None else kibibytes << 10


def peak() -> int:
    """Bytes that this process has held at most since its program was started.

    Not `ru_maxrss`: a child starts with its parent's value, so a small process of a large one reports the large one.
    """
    kibibytes = _kibibytes(STATUS, "VmHWM:")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 if kibibytes is None else kibibytes << 10


def _kibibytes(file: Path, name: str) -> int | None:
    """What a line of a file of /proc says; None on a system that has no such file."""
    lines = file.read_text().splitlines() if file.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), None)
