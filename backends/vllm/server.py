"""vLLM's server with the quantisation of this package; `backends.vllm.serve` becomes this.

What vLLM and its processes write goes to a file, and an end with a fault is one line: of the forty or more that vLLM
writes, the cause is somewhere in the middle. The console script `vllm` does not start in the CPU build, which has
another distribution name.
"""

from __future__ import annotations

import os
import re
import runpy
import sys
import tempfile
import traceback
from pathlib import Path

from .arguments import LOG

if __name__ != "__main__":  # in the processes that vLLM starts, which need its schemes as well
    from . import fp8  # noqa: F401

RAISED = re.compile(r"(?:^|[\]\s])((?:\w+\.)*\w*(?:Error|Exception|Interrupt): .+|error: .+)$")
CONSEQUENCES = ("engine core initialization failed", "engine core proc", "see root cause", "see stack trace")
LONGEST = 400  # characters of a cause


def cause(written: str) -> str:
    """The line of vLLM's log that says why it ended: the last that was raised and does not refer to another."""
    lines = [line.strip() for line in written.splitlines() if line.strip()]
    raised = [
        " ".join(
            [match[1], *(lines[i + 1 : i + 3] if "validation error" in match[1] else [])]
        )  # pydantic says what below
        for i, line in enumerate(lines)
        if (match := RAISED.search(line))
    ]
    own = [each for each in raised if not any(word in each.lower() for word in CONSEQUENCES)]
    return (own or raised or lines or ["nothing was written"])[-1][:LONGEST]


def main() -> None:
    """Run the server; what it writes goes to a file that the first line names."""
    log = os.environ.get(LOG)
    with (
        open(log, "ab")
        if log
        else tempfile.NamedTemporaryFile(prefix="firstorder-vllm-", suffix=".log", delete=False) as file
    ):
        start = file.tell()
        print(f"vLLM writes to {file.name}", file=sys.stderr, flush=True)
        terminal = os.dup(2)
        os.set_inheritable(terminal, False)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        from . import fp8  # noqa: F401  # registers its schemes; it imports vLLM, which writes

        runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        sys.exit(130)
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stderr.flush()
        reason = cause(Path(file.name).read_bytes()[start:].decode(errors="replace"))
        os.write(terminal, f"firstorder: vLLM's server ended: {reason}; its log is {file.name}\n".encode())
        sys.exit(1)


if __name__ == "__main__":
    main()
