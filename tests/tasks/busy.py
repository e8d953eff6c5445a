"""What stands for a verifier in `test_worker`; a module of its own, which the other process can import."""

import itertools
import os
import time

from firstorder.core.errors import DataError


def prepare():
    os.environ["PREPARED"] = "1"


def busy(what):
    """Stands for a verifier."""
    if what == "loop":
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                time.sleep(0.01)
    if what == "stuck in C":
        return sum(itertools.repeat(1))
    if what == "memory":
        return len(bytearray(2**31))
    if what == "end":
        os._exit(1)
    if what == "wrong data":
        raise DataError("the reference is wrong")
    return float(what) + float(os.environ["PREPARED"])
