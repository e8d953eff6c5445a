"""`make bench` where CONTRIBUTING says to run it, cut short: it collects what is installed and states its figures."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SPREAD = r"([\d.]+) \[[\d.]+, [\d.]+\], [\d.]+ to [\d.]+ in 2 rounds"


def make(*arguments, **variables):
    command = ["make", "bench", f"PYTHON={sys.executable}", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_benchmarks_state_an_ensembles_ratio_with_its_spread():
    done = make("ARGS=-k one_after_another", FIRSTORDER_ROUNDS="2", FIRSTORDER_MEMBERS="4")
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = re.findall(rf"one after another / an ensemble: {SPREAD}", done.stdout)
    assert float(line) > 1.5  # 4 members share the interpreter's work of one
