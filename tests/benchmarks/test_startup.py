"""How long a command takes until its work starts, beside the import that it cannot do without."""

import os
import resource
import subprocess
import sys

import pytest

# `threads` is called where the work of the simulator starts
UNTIL_WORK = """
import os
from firstorder.core import threads
threads.threads = lambda numbers: os._exit(0)
from firstorder.cli.main import run
run({arguments})
os._exit(1)
"""
# `read` is called where the work of a command without torch starts
UNTIL_READ = """
import os
from firstorder.core.settings import toml
toml.read = lambda name: os._exit(0)
from firstorder.cli.main import run
run({arguments})
os._exit(1)
"""
PAIRS = {
    # pydantic imports its parts when they are used: its name alone is half of what any model of settings needs
    "recipes until it reads / import typer and BaseModel": (
        UNTIL_READ,
        ["recipes"],
        "import typer; from pydantic import BaseModel, Field",
    ),
    "recipes until it reads / import typer and pydantic": (UNTIL_READ, ["recipes"], "import typer, pydantic"),
    "measure until it works / import torch": (UNTIL_WORK, ["measure", "minirl"], "import torch"),
    "validate until it works / import torch": (UNTIL_WORK, ["validate", "--only", "baseline"], "import torch"),
}


def seconds(script):
    """Processor seconds of a process of its own, which do not count what else runs on the machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("name", PAIRS)
def test_a_command_starts_beside_an_import(name, benchmarking, state):
    script, arguments, bare = PAIRS[name]
    rounds = int(os.environ.get("FIRSTORDER_ROUNDS", 5)) if benchmarking else 1
    pairs = [(seconds(script.format(arguments=arguments)), seconds(bare)) for _ in range(rounds)]
    if rounds > 1:
        state(name, [ours / theirs for ours, theirs in pairs])
