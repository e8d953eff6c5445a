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
from pathlib import Path

from firstorder.backends.extras import require
from firstorder.backends.folder import read_shape
from firstorder.backends.weights import open_weights
from firstorder.core.errors import FirstOrderError
from firstorder.core.settings.toml import build, override, read

from .arguments import COMMON, LOG, arguments, check_device, environment
from .config import Vllm

ENVIRONMENT = COMMON | {
    "VLLM_SERVER_DEV_MODE": "1",  # opens /collective_rpc and /reset_prefix_cache
    "TORCHDYNAMO_DISABLE": "1",  # on a CPU the compiled sampler costs seconds and gains nothing
}


def flags(folder: str, host: str, port: int, settings: Vllm) -> list[str]:
    """The command line of vLLM's server."""
    options = arguments(settings, folder) | {
        "host": host,
        "port": port,
        "worker_extension_cls": "firstorder.backends.vllm.extension.Worker",
    }
    return [word for name, value in options.items() for word in _flag(name.replace("_", "-"), value)]


def _flag(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]


def main() -> None:
    """Become a vLLM server; a mistake is one line and exit code 2."""
    parser = argparse.ArgumentParser(description="A vLLM server for firstorder's rollouts.")
    parser.add_argument("folder")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--settings", metavar="FILE", help="TOML whose table [vllm] is read before --set")
    parser.add_argument("--log", metavar="FILE", help="vLLM's output is added to it; a new temporary file unless given")
    options = parser.parse_args()
    try:
        require("vllm")
        table = read(options.settings).get("vllm", {}) if options.settings else {}
        settings = build(Vllm, override(table, options.assignments), "vllm")
        check_device(settings)
        open_weights(Path(options.folder), read_shape(Path(options.folder)))
    except FirstOrderError as error:
        print(f"firstorder: {error}", file=sys.stderr)
        sys.exit(2)
    if options.log:
        os.environ[LOG] = options.log
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    os.environ.update(environment(settings))
    server = [sys.executable, "-m", "firstorder.backends.vllm.server"]
    os.execv(sys.executable, server + flags(options.folder, options.host, options.port, settings))


if __name__ == "__main__":
    main()
