"""Run by each of two ranks: a whole run, the server given its first weights again, and a run for a rank to die in."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from firstorder.backends.ranks import first, told
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

    told(reset)
    if first():
        print("second run", flush=True)
    sys.exit(run([*command, "--out", f"{out}/killed"]))


main()
