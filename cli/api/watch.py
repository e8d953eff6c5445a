"""The report of runs that go on, written again whenever they have logged more."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .report import ReportResult, checked, counted, holds_many

if TYPE_CHECKING:
    from firstorder.cli.report.runs import Run

PAUSE = 5.0  # seconds between two looks, and between two times that the page loads itself again
PAGE = "report.html"


def watch(*runs: str | os.PathLike[str], out: str | os.PathLike[str], pause: float = PAUSE) -> Iterator[ReportResult]:
    """Report runs, and again whenever they have logged more, until all are finished or Ctrl-C is pressed.

    The page loads itself again until then. A run that has not logged a step yet is waited for.

    Args:
        runs: run folders.
        out: a new or empty folder.
        pause: seconds between two looks.

    Yields:
        The report, each time that it has been written.

    Raises:
        ConfigError: as `report`, or a folder holds many runs.
    """
    from firstorder.core.errors import ConfigError

    paths, folder = checked(runs, out), Path(out)
    if many := [path for path in paths if holds_many(path)]:
        raise ConfigError(f"--watch follows runs, and {many[0]} holds many; give it without --watch, or its cells")
    still = b""
    try:
        seen: tuple[int, ...] = ()
        while True:
            sizes = _sizes(paths)
            if sizes != seen and all(map(_has_step, paths)):
                seen = sizes
                read, files = _drawn(paths)
                still = files[PAGE]
                over = all(run.steps >= run.planned for run in read)
                _write(folder, files if over else files | {PAGE: _reloading(still, pause)})
                yield ReportResult(page=folder / PAGE, contents=_progress(read))
                if over:
                    return
            time.sleep(pause)
    except KeyboardInterrupt:
        return
    finally:
        if still:
            _write(folder, {PAGE: still})


def _drawn(paths: list[Path]) -> tuple[list[Run], dict[str, bytes]]:
    from firstorder.cli.report.files import run_report
    from firstorder.cli.report.runs import read_runs

    runs = read_runs(paths)
    return runs, run_report(runs)


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Each file whole, the page last: what it links to is there."""
    from firstorder.core.errors import ConfigError
    from firstorder.core.runs.files import write_whole

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write --out {folder}: {error.strerror}; give another folder") from None
    for name in sorted(files, key=lambda name: name == PAGE):
        write_whole(folder / name, files[name])


def _reloading(page: bytes, pause: float) -> bytes:
    return page.replace(b"<head>", f'<head><meta http-equiv="refresh" content="{max(1, round(pause))}">'.encode(), 1)


def _has_step(path: Path) -> bool:
    """Whether both logs hold a whole line, or never will: what is no run folder is refused on reading."""
    from firstorder.core.runs.logs import LOGS

    logs = [path / f"{name}.jsonl" for name in LOGS]
    return not (path / "config.toml").is_file() or all(log.is_file() and b"\n" in log.read_bytes() for log in logs)


def _sizes(paths: list[Path]) -> tuple[int, ...]:
    from firstorder.core.runs.events import NAME
    from firstorder.core.runs.logs import LOGS

    files = [path / name for path in paths for name in (*(f"{log}.jsonl" for log in LOGS), NAME)]
    return tuple(file.stat().st_size if file.is_file() else 0 for file in files)


def _progress(runs: list[Run]) -> str:
    done = ", ".join(f"{run.steps} of {run.planned} steps" for run in runs)
    return f"{counted(len(runs), 'run')}, {done}"
