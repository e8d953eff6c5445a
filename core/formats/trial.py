"""Parquet files are read in a process of their own first: a damaged or hostile one may abort pyarrow, and the process.

Nothing but pyarrow is imported there. It says which file it is about to read, so that its last word names the culprit.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path

from firstorder.core.errors import DataError

ROWS = 64  # that are held at once
MEMORY = 6 << 30  # bytes of address space, most of which are libraries and files that are mapped
TIME = 600  # seconds of processor time


def survived(paths: Sequence[Path]) -> None:
    """Refuse files that a process does not survive to read.

    Raises:
        DataError: with the file, and what became of the process.
    """
    _survived(tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths))


@lru_cache(maxsize=256)
def _survived(files: tuple[tuple[str, int, int], ...]) -> None:
    names = "\n".join(name for name, _, _ in files)
    done = subprocess.run(
        [sys.executable, "-m", __name__], input=names, capture_output=True, text=True, check=False, env=None
    )
    if done.returncode:
        last = done.stdout.strip().splitlines()[-1:] or [files[0][0]]
        raise DataError(
            f"{last[0]} is damaged: the process that reads it ended with code {done.returncode}; write the dump anew"
        )


def main() -> None:
    """Read every file whose name is on standard input; what pyarrow itself refuses is left for the reader to say."""
    pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (TIME, TIME))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pyarrow.set_cpu_count(1)
    for name in sys.stdin.read().split("\n"):
        print(name, flush=True)
        try:
            file = parquet.ParquetFile(name, page_checksum_verification=True)
            for batch in file.iter_batches(batch_size=ROWS):
                del batch
        except (pyarrow.ArrowException, OSError, ValueError, MemoryError):
            continue


if __name__ == "__main__":
    main()
