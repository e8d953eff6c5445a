import subprocess
import sys

import pytest

from firstorder.core import memory

HELD = 400 << 20
CHILD = "from firstorder.core import memory; print(memory.peak())"
PARENT = f"""
import subprocess, sys
held = bytearray({HELD})
held[::4096] = b"x" * len(held[::4096])
print(subprocess.run([sys.executable, "-c", {CHILD!r}], capture_output=True, text=True, check=True).stdout)
"""


def printed(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_the_peak_of_a_child_is_not_that_of_its_parent():
    child, alone = printed(PARENT), printed(CHILD)
    assert child < HELD / 2
    assert child == pytest.approx(alone, rel=0.1)


def test_the_peak_is_that_of_the_past():
    program = f"held = bytearray({HELD}); held[::4096] = b'x' * len(held[::4096]); del held; {CHILD}"
    assert printed(program) > HELD


def test_a_system_without_proc_has_numbers_too(monkeypatch, tmp_path):
    real = memory.available(), memory.peak()
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert min(memory.available(), memory.peak(), *real) > 1 << 20
