"""What is left when everything that can go wrong has its own line: a fault of this package, said in one line."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
FAULT = 70  # EX_SOFTWARE of sysexits.h
SHOW = "FIRSTORDER_TRACEBACK"  # an environment variable; if it is set, tracebacks go to stderr
LONGEST = 1200  # characters of an error
NO_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")


def guarded(run: Callable[[list[str]], int], arguments: list[str]) -> int:
    """The exit code of `run`, or of the line that an exception which nobody expected becomes.

    `run` raises such an exception as it is, so that tests see it; this is for the console script.
    """
    try:
        code = run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:
        if any(isinstance(each, KeyboardInterrupt) for each in _chain(error)):  # of an import that was broken off
            return _interrupted()
        lost = isinstance(error, OSError) and error.filename is None and error.errno in NO_OUTPUT
        return _without_output(error) if lost else _fault(error)


def tell(message: str) -> None:
    """A message on stderr, as one line."""
    print(f"firstorder: {one_line(message)}", file=sys.stderr)


def one_line(text: str) -> str:
    r"""A text without line breaks and control characters, cut in the middle where it is very long.

    Example:
        >>> one_line("a\nb\x00")
        'a\\nb\\x00'
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 4 :]}"
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python or torch says that memory ended."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)
    )


def _interrupted() -> int:
    """One line, and no second interruption while the process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tell("interrupted")
    return INTERRUPTED


def _without_output(error: Exception) -> int:
    """What became of a standard output that cannot be written: the reader left, or the disk is full."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # what is buffered would fail again when the process ends
    if isinstance(error, BrokenPipeError):
        return 1
    tell(f"cannot write to standard output: {error.args[-1]}; free some space")
    return 2


def _fault(error: Exception) -> int:
    """One line for an exception that is a fault of this package, and its traceback in a file or on stderr."""
    import tempfile
    import traceback

    from firstorder import __version__

    text = f"firstorder {__version__}: {sys.argv[1:]}\n" + "".join(traceback.format_exception(error))
    where = f"set {SHOW}=1 to see its traceback"
    if os.environ.get(SHOW):
        sys.stderr.write(text)
        where = "its traceback is above"
    else:
        try:
            with tempfile.NamedTemporaryFile("w", prefix="firstorder-", suffix=".txt", delete=False) as file:
                file.write(text.encode(errors="backslashreplace").decode())
                where = f"its traceback is in {file.name}"
        except OSError:
            pass
    reason = next(iter(str(error).strip().splitlines()), "")
    tell(f"a fault of firstorder itself, {type(error).__name__}: {reason}; {where}: please report it with the command")
    return FAULT


def _chain(error: BaseException | None) -> list[BaseException]:
    """An exception and what it was raised from."""
    errors: list[BaseException] = []
    while error is not None and error not in errors:
        errors.append(error)
        error = error.__cause__ or error.__context__
    return errors
