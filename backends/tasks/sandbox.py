"""Programs that a model wrote, run with limits, cut off from the machine and apart from what judges them; see `jail`.

| | `full` | `limits` |
|---|---|---|
| wall clock, processor time, memory, open files, size of a file | bounded | bounded |
| network | refused | refused |
| starting processes, signalling or tracing others | refused; threads are allowed | the same |
| writing | in a folder of its own that is thrown away | whatever the user may |
| reading | Python, its packages and the system's libraries | whatever the user may, files of tests too |

`full` needs Landlock, Linux 5.13 or newer; before 6.2 a file that the user may write can still be emptied. All files
together are bounded by time alone. The kernel is shared: this stops mistakes and tricks for a reward, not an attack on
the kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import firstorder
from firstorder.core.errors import ConfigError, DataError

Isolation = Literal["full", "limits"]
Test = str | Mapping[str, str]  # Python, or the `input` and the `output` of a program
ROOT = Path(firstorder.__file__).parents[1]
START_JAIL = (
    "import sys; sys.path.insert(0, sys.argv[1]); from firstorder.backends.tasks.jail.main import main; "
    "del sys.path[0], sys.argv[1:]; main()"
)
WORKS = "def works():\n    return len(bytearray(1 << 23))"  # a program that needs a little memory
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


def passed(program: str, tests: Sequence[Test], limits: Limits) -> list[bool]:
    """Which tests pass, each in processes of its own: one of the program, and one of the test, which ends normally.

    Args:
        program: Python; its `__name__` is `answer`, or `__main__` where it is given input.
        tests: Python, e.g. `assert f(1) == 2`, or input and output.
        limits: of each process.

    Raises:
        DataError: the sandbox itself does not start, or a test gives the program what is no plain value.

    Example:
        >>> passed("f = abs", ["assert f(-1) == 1", "assert f(-1) == 2"], Limits(seconds=5, memory_mib=512,
        ...     isolation="full"))
        [True, False]
    """
    with tempfile.TemporaryDirectory(prefix="firstorder-", ignore_cleanup_errors=True) as folder:
        known = {
            "program": program,
            "folder": folder,
            "seconds": limits.seconds,
            "memory_mib": limits.memory_mib,
            "isolation": limits.isolation,
        }
        said, complaint = _run(known, tests, START + len(tests) * (limits.seconds + 1), folder)
    ready, _, marks = said.decode(errors="replace").partition("\n")
    if ready != "ready":
        reason = (complaint.decode(errors="replace").strip().splitlines() or ["it ended without a word"])[-1]
        raise DataError(f"the sandbox does not start: {reason}")
    if "?" in marks:
        raise DataError(
            f"the test {tests[marks.index('?')]!r} gives the program a value that is not plain data; rewrite it"
        )
    # a jail that was ended has said nothing about the tests that were left
    return [mark == "1" for mark in marks.ljust(len(tests), "0")]


def passed_by(programs: Sequence[str], tests: Sequence[Sequence[Test]], limits: Limits) -> list[list[bool]]:
    """`passed` of several programs, as many at once as there are processors."""
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda program, own: passed(program, own, limits), programs, tests))


def check(limits: Limits) -> None:
    """Run a program that passes.

    Raises:
        ConfigError: the sandbox does not start here, or passes nothing.
    """
    try:
        works, reason = passed(WORKS, ["assert works()"], limits) == [True], "it passes nothing; raise task.memory_mib"
    except DataError as error:
        works, reason = False, str(error)
    if not works:
        remedy = "; task.isolation = limits does without Landlock" if limits.isolation == "full" else ""
        raise ConfigError(f"code cannot be run with task.isolation = {limits.isolation}: {reason}{remedy}")


def _run(known: dict[str, Any], tests: Sequence[Test], seconds: float, folder: str) -> tuple[bytes, bytes]:
    """What a jail says: it is given the tests after what its programs may know."""
    first = json.dumps(known).encode()
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", START_JAIL, str(ROOT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env={"PATH": os.defpath, "TMPDIR": folder, "HOME": folder, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        return process.communicate(
            struct.pack(">Q", len(first)) + first + json.dumps([*map(_plain, tests)]).encode(), seconds
        )
    except subprocess.TimeoutExpired:
        return _killed(process)


def _plain(test: Test) -> str | dict[str, str]:
    return test if isinstance(test, str) else dict(test)


def _killed(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """What a process that took too long has said until now."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    return process.communicate()
