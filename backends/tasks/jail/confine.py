"""Give up, for good, what a program must not have.

Three parts of Linux that need no privilege do the work: resource limits, seccomp, which refuses system calls by number,
and Landlock, which refuses files by where they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys

TYPE_CHECKING = False  # typing takes as long to import as a test to run
if TYPE_CHECKING:
    from typing import Any

SET_PDEATHSIG, SET_DUMPABLE, SET_SECCOMP, SET_NO_NEW_PRIVS = 1, 4, 22, 38
FILES, FILE_MIB = 256, 16  # open at once; of one file

# What is refused, by number: new processes, other programs' processes, network, and changes of files that Landlock does
# not see. `clone` may start threads, and `clone3`, whose arguments a filter cannot read, is said not to exist.
REFUSED: dict[str, dict[str, Any]] = {
    "x86_64": {
        "arch": 0xC000003E,
        "clone": 56,
        "prlimit": 302,
        "processes": [57, 58, 62, 101, 129, 141, 200, 203, 234, 297, 310, 311, 424, 434, 438],
        "network": [41, 425],
        "files": [76, 90, 91, 92, 93, 94, 188, 189, 190, 197, 198, 199, 260, 268, 452, 463, 466],
    },
    "aarch64": {
        "arch": 0xC00000B7,
        "clone": 220,
        "prlimit": 261,
        "processes": [117, 122, 129, 130, 131, 138, 140, 240, 270, 271, 424, 434, 438],
        "network": [198, 425],
        "files": [5, 6, 7, 14, 15, 16, 45, 52, 53, 54, 55, 452, 463, 466],
    },
}
CLONE3, CLONE_THREAD, X32 = 435, 0x00010000, 0x40000000
KILL, ERRNO, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # how many kinds of access a version of Landlock knows; 16 since the fifth
READABLE = ("/usr", "/lib", "/lib64", "/bin", "/etc")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


def called(name: str, *arguments: Any) -> int:
    """A function of the C library, which fails with an OSError."""
    result: int = getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def hide() -> None:
    """Let no other process of the user read this one's memory, nor that of those it forks."""
    called("prctl", SET_DUMPABLE, 0, 0, 0, 0)


def confine(job: dict[str, Any], folder: str) -> None:
    """Give up, for good, all that the program must not have; `folder` is its own to write."""
    called("prctl", SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    hide()
    called("prctl", SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    bounds = {
        resource.RLIMIT_AS: job["memory_mib"] << 20,
        resource.RLIMIT_CPU: int(job["seconds"]) + 1,
        resource.RLIMIT_FSIZE: FILE_MIB << 20,
        resource.RLIMIT_NOFILE: FILES,
        resource.RLIMIT_CORE: 0,
    }
    for name, bound in bounds.items():
        hard = resource.getrlimit(name)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(name, (bound, bound))
    if job["isolation"] == "full":
        landlock([folder])
    called("capset", (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())  # what root is made of
    seccomp(REFUSED[platform.machine()])


def landlock(writable: list[str]) -> None:
    """No file but those of Python and of the system to read, and those beneath `writable` folders to write."""
    version = called("syscall", LANDLOCK_CREATE, None, 0, 1)
    every = (1 << RIGHTS.get(version, 16)) - 1
    ruleset = called("syscall", LANDLOCK_CREATE, ctypes.byref(ctypes.c_uint64(every)), 8, 0)
    python = {sys.prefix, sys.base_prefix, *sys.path}
    rules = dict.fromkeys([*READABLE, *python], EXECUTE | READ_FILE | READ_DIR)
    rules |= dict.fromkeys(DEVICES, (READ_FILE | WRITE_FILE | TRUNCATE) & every) | dict.fromkeys(writable, every)
    for path, allowed in rules.items():
        with contextlib.suppress(FileNotFoundError):
            place = os.open(path, os.O_PATH)
            if not os.path.isdir(path):
                allowed &= ~READ_DIR
            rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, place))
            called("syscall", LANDLOCK_ADD, ruleset, 1, rule, 0)
            os.close(place)
    called("syscall", LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)


def seccomp(refused: dict[str, Any]) -> None:
    """Answer the system calls of a table with an error."""
    load, equal, at_least, some_bit, done = 0x20, 0x15, 0x35, 0x45, 0x06  # instructions of classic BPF
    refuse = (done, 0, 0, ERRNO | errno.EPERM)
    program = [(load, 0, 0, 4), (equal, 1, 0, refused["arch"]), (done, 0, 0, KILL), (load, 0, 0, 0)]
    program += [(at_least, 0, 1, X32), refuse, (equal, 0, 1, CLONE3), (done, 0, 0, ERRNO | errno.ENOSYS)]
    for number in refused["processes"] + refused["network"] + refused["files"]:
        program += [(equal, 0, 1, number), refuse]
    # their first argument decides: a clone must be a thread, and limits are one's own, which is process 0
    program += [(equal, 0, 4, refused["clone"]), (load, 0, 0, 16), (some_bit, 1, 0, CLONE_THREAD), refuse]
    program += [(done, 0, 0, ALLOW), (equal, 0, 3, refused["prlimit"]), (load, 0, 0, 16), (equal, 1, 0, 0), refuse]
    program += [(done, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    called("prctl", SET_SECCOMP, 2, struct.pack("@HP", len(program), ctypes.addressof(code)), 0, 0)
