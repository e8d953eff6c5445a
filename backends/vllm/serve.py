"""Start a vLLM server that `vllm.servers` can name: one replica of the rollout engine.

    python -m firstorder.backends.vllm.serve FOLDER --port 8001 --set dtype=float32

The settings are keys of `[vllm]`, and those of the run. The server can be told to load weights by whoever reaches its
port, so it listens on the loopback interface unless --host names another.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

import torch

from firstorder.backends.extras import require
from firstorder.core.errors import FirstOrderError
from firstorder.core.toml import build, override, read

from .config import Vllm

ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # opens /collective_rpc and /reset_prefix_cache
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",  # on a CPU the compiled sampler costs seconds and gains nothing
}


def arguments(folder: str, host: str, port: int, settings: Vllm, *, eager: bool = True) -> list[str]:
    """The command line of vLLM's server; `eager` runs the model without CUDA graphs."""
    flags = {
        "model": folder,
        "host": host,
        "port": str(port),
        "dtype": settings.dtype,
        "kv-cache-dtype": settings.kv_cache_dtype,
        "max-model-len": str(settings.max_prompt + settings.max_tokens),
        "max-num-seqs": str(settings.max_sequences),
        "tensor-parallel-size": str(settings.tensor),
        "kv-cache-memory-bytes": str(settings.kv_cache_mib << 20),
        "logprobs-mode": "processed_logprobs",
        "worker-extension-cls": "firstorder.backends.vllm.extension.Worker",
    }
    switches = [
        "--enable-return-routed-experts",
        "--enable-prefix-caching" if settings.prefix_caching else "--no-enable-prefix-caching",
        *(["--enforce-eager"] if eager else []),
    ]
    for name, value in settings.quantized.items():
        flags[name.replace("_", "-")] = value if isinstance(value, str) else json.dumps(value)
    return [word for name, value in flags.items() for word in (f"--{name}", value)] + switches


def main() -> None:
    """Become a vLLM server; a mistake is one line and exit code 2."""
    parser = argparse.ArgumentParser(description="A vLLM server for firstorder's rollouts.")
    parser.add_argument("folder")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--settings", metavar="FILE", help="TOML whose table [vllm] is read before --set")
    given = parser.parse_args()
    try:
        require("vllm")
        table = read(given.settings).get("vllm", {}) if given.settings else {}
        settings = build(Vllm, override(table, given.assignments), "vllm")
    except FirstOrderError as error:
        sys.exit(f"firstorder: {error}")
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    on_cpu = not torch.accelerator.is_available()
    # the console script `vllm` does not start in the CPU build, which has another distribution name
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    os.execv(sys.executable, server + arguments(given.folder, given.host, given.port, settings, eager=on_cpu))


if __name__ == "__main__":
    main()
