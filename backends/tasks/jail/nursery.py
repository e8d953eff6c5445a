"""The process that forks one program after another; it was forked before the tests were read, so no fork holds them."""

from __future__ import annotations

import os
import signal
import socket

from .confine import confine
from .program import load, serve

TYPE_CHECKING = False  # typing takes as long to import as a test to run
if TYPE_CHECKING:
    from typing import Any

CALLED, FED = b"c", b"f"  # how a program is used: its names are called, or it is given input
LINE, MANY = 3, 1 << 20  # the descriptor of a socket, and one that no descriptor reaches


def nursery(control: socket.socket, job: dict[str, Any]) -> None:
    """Fork a program for each socket that arrives, kill it at the next byte; only those forks return."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the tests are still to come there
    count = 0
    while True:
        kind, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not kind:
            os._exit(0)
        child = os.fork()
        if not child:
            control.detach()
            line = alone(f"{job['folder']}/{count}", descriptors[0], kind == FED, job)
            if kind == FED:
                load(job["program"], "__main__")
            else:
                serve(job["program"], line)
            return
        os.close(descriptors[0])
        control.recv(1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        control.send(b".")
        count += 1


def alone(folder: str, line: int, fed: bool, job: dict[str, Any]) -> int:
    """Keep a socket, whose new number it is, and a folder, and nothing else; `fed`: as input and output."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(TMPDIR=folder, HOME=folder)
    os.dup2(line, LINE)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(LINE if fed and stream < 2 else null, stream)
    os.closerange(LINE if fed else LINE + 1, MANY)
    confine(job, folder)
    return LINE
