"""Programs that a model wrote, run with limits and cut off from the machine; see `jail` for how.

| | `full` | `limits` |
|---|---|---|
| wall clock, processor time, memory, open files, size of a file | bounded | bounded |
| network | refused | refused |
| starting processes, signalling or tracing others | refused; threads are allowed | the same |
| writing | in a folder of its own that is thrown away | whatever the user may |
| reading | Python, its packages and the system's libraries | whatever the user may |

`full` needs Landlock, Linux 5.13 or newer; before 6.2 a file that the user may write can still be emptied. All files
together are bounded by time alone. The kernel is shared: this stops mistakes and tricks for a reward, not an attack on
the kernel. Nor does it hide a test from the program, which runs in the same process: one that searches there can say
that it passed. Ending early, printing or catching exceptions is no such trick.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from firstorder.core.errors import ConfigError, DataError

Isolation = Literal["full", "limits"]
JAIL = Path(__file__).with_name("jail.py")
START = 60.0  # seconds that a loaded machine may take to start a process


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one test may use.

    Args:
        seconds: of wall clock, and rounded up, of processor time.
        memory_mib: address space.
        isolation: see the table above.
    """

    seconds: float
    memory_mib: int
    isolation: Isolation


def passed(program: str, tests: Sequence[str], limits: Limits) -> list[bool]:
    """Which tests pass: each runs after the program in a process of its own, and ends without an exception.

    Args:
        program: Python; its `__name__` is not `__main__`.
        tests: Python, e.g. `assert f(1) == 2`.
        limits: of each test.

    Raises:
        DataError: the sandbox itself does not start.

    Example:
        >>> passed("f = abs", ["assert f(-1) == 1", "assert f(-1) == 2"], Limits(seconds=5, memory_mib=512,
        ...     isolation="full"))
        [True, False]
    """
    with tempfile.TemporaryDirectory(prefix="firstorder-", ignore_cleanup_errors=True) as folder:
        job = {
            "program": program,
            "tests": list(tests),
            "folder": folder,
            "seconds": limits.seconds,
            "memory_mib": limits.memory_mib,
            "isolation": limits.isolation,
        }
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", JAIL.read_text(encoding="utf-8")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={"PATH": os.defpath, "TMPDIR": folder, "HOME": folder, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            said, complaint = process.communicate(json.dumps(job).encode(), START + len(tests) * (limits.seconds + 1))
        except subprocess.TimeoutExpired:
            said, complaint = _killed(process)
    ready, _, marks = said.decode(errors="replace").partition("\n")
    if ready != "ready":
        reason = (complaint.decode(errors="replace").strip().splitlines() or ["it ended without a word"])[-1]
        raise DataError(f"the sandbox does not start: {reason}")
    # a jail that was shot by its program has said nothing about the tests that were left
    return [mark == "1" for mark in marks.ljust(len(tests), "0")]


def passed_by(programs: Sequence[str], tests: Sequence[Sequence[str]], limits: Limits) -> list[list[bool]]:
    """`passed` of several programs, as many at once as there are processors."""
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda program, own: passed(program, own, limits), programs, tests))


def check(limits: Limits) -> None:
    """Run a program that passes.

    Raises:
        ConfigError: the sandbox does not start here, or passes nothing.
    """
    try:
        works, reason = passed("", ["pass"], limits) == [True], "it passes nothing; raise task.memory_mib"
    except DataError as error:
        works, reason = False, str(error)
    if not works:
        remedy = "; task.isolation = limits does without Landlock" if limits.isolation == "full" else ""
        raise ConfigError(f"code cannot be run with task.isolation = {limits.isolation}: {reason}{remedy}")


def _killed(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """What a process that took too long has said until now."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    return process.communicate()
