"""What a command may import: little, since it is waited for before the work starts."""

import json
import subprocess
import sys

LATER = {"scipy", "sympy", "matplotlib", "pandas", "pyarrow", "transformers", "joblib"}
TORCH = LATER | {"torch", "numpy"}
SMALL = ["--set", "sim.horizon=2", "--set", "sim.prompts=2"]
REFUSED = {  # in this order, in one process: what a command imports stays there for the next
    "--help": ([], TORCH | {"pydantic", "rich"}),
    "recipes": ([], TORCH),
    "a recipe's setting that is refused": (
        ["measure", "minirl", "--set", "clip.high=wide"],
        LATER | {"torch", "numpy"},
    ),
    "a simulator's": (["train", "minirl", "--set", "sim.horizon=far"], TORCH),
    "a recipe that is not there": (["measure", "minirl-r9"], TORCH),
    "a record that is not there": (["validate", "--expect", "nothing.json"], TORCH),
    "answers that are not there": (["conformance", "check", "nothing.json"], TORCH),
    "measure": (["measure", "minirl", *SMALL], LATER),
}
SCRIPT = """
import contextlib, io, json, sys
from firstorder.cli.main import run

found = {}
for name, arguments in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run(arguments or [name])
    found[name] = sorted({module.split(".")[0] for module in sys.modules})
print(json.dumps(found))
"""


def test_no_command_imports_what_its_work_does_not_need(tmp_path):
    commands = json.dumps({name: arguments for name, (arguments, _) in REFUSED.items()})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, commands], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    for name, modules in json.loads(done.stdout).items():
        assert not REFUSED[name][1] & set(modules), name
