"""The supervisor: read a job, report `ready`, then a mark for each test."""

from __future__ import annotations

import json
import os
import platform
import select
import signal
import socket
import struct
import sys

from .confine import REFUSED, confine, hide
from .judge import PASSED, UNJUDGED, compare, judge
from .nursery import CALLED, FED, alone, nursery

TYPE_CHECKING = False  # typing takes as long to import as a test to run
if TYPE_CHECKING:
    from typing import Any

MARKS = {PASSED: b"1", UNJUDGED: b"?"}  # of exit statuses; of all others, b"0"


def main() -> None:
    """Answer a job on the standard output, in the standard input: a length, what the nursery needs, the tests."""
    hide()
    (length,) = struct.unpack(">Q", _read(8))
    job = json.loads(_read(length))
    if platform.machine() not in REFUSED:
        sys.exit(f"its system calls are known for {', '.join(REFUSED)}, this is {platform.machine()}")
    _rehearse(job)
    control, other = socket.socketpair()
    if not os.fork():
        control.close()
        nursery(other, job)
        return
    other.close()
    report = os.dup(1)
    os.write(report, b"ready\n")
    for number, test in enumerate(json.loads(_read(None))):
        os.write(report, _attempt(job, test, f"{job['folder']}/{number}", control))


def _read(length: int | None) -> bytes:
    """So many bytes of a job and no more, since what is read before the nursery is forked is known to programs."""
    content = bytearray()
    while length is None or len(content) < length:
        more = os.read(0, 1 << 20 if length is None else length - len(content))
        if not more:
            break
        content += more
    return bytes(content)


def _rehearse(job: dict[str, Any]) -> None:
    """What the kernel refuses is an error of the machine, not of a program."""
    if not os.fork():
        try:
            confine(job, job["folder"])
        except OSError as error:
            sys.exit(error.strerror)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(1)


def _attempt(job: dict[str, Any], test: Any, folder: str, control: socket.socket) -> bytes:
    """The mark of a test: a program of its own, and a judge of it, until the judge is done or the time is over."""
    ours, theirs = socket.socketpair()
    os.mkdir(folder)
    socket.send_fds(control, [CALLED if isinstance(test, str) else FED], [theirs.fileno()])
    theirs.close()
    child = os.fork()
    if not child:
        line = alone(folder, ours.detach(), False, job)
        judge(test, line) if isinstance(test, str) else compare(test["input"], test["output"], line)
    ours.close()
    watch = os.pidfd_open(child)
    select.select([watch], [], [], job["seconds"])
    os.close(watch)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    control.send(b".")
    control.recv(1)
    return MARKS.get(os.waitstatus_to_exitcode(status), b"0")
