"""Run by each of two ranks: a whole run, one that the second rank is asked to stop, and one for a rank to die in.

Between them the server is given its first weights again.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from firstorder.backends.pair import EnginePair
from firstorder.backends.ranks import broadcast_from_rank0, is_rank0
from firstorder.backends.tasks import sums
from firstorder.backends.vllm.config import Vllm
from firstorder.backends.vllm.served import ServedEngine
from firstorder.cli.main import run


def main():
    torch.set_num_threads(1)
    out, folder, vllm, *command = sys.argv[1:]
    assert run([*command, "--out", f"{out}/whole"]) == 0

    def reset():
        engine = ServedEngine(Vllm(**json.loads(vllm)), folder, [sums.END])
        engine.sync(load_file(Path(folder) / "model.safetensors").items(), 0)
        engine.close()

    broadcast_from_rank0(reset)
    push = EnginePair.sync_weights

    def asked(self):
        push(self)
        if not is_rank0():
            os.kill(os.getpid(), signal.SIGTERM)

    EnginePair.sync_weights = asked
    assert run([*command, "--out", f"{out}/asked"]) == 128 + signal.SIGTERM  # also on the rank that met no signal
    EnginePair.sync_weights = push
    assert run([*command, "--out", f"{out}/asked", "--resume"]) == 0
    broadcast_from_rank0(reset)
    if is_rank0():
        print("second run", flush=True)
    sys.exit(run([*command, "--out", f"{out}/killed"]))


main()
