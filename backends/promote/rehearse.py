"""A rehearsal: preflight and launchers of a bundle, unchanged, on a small model with two ranks and one server.

What the cluster will set in the environment is set here, and further arguments make the batch small.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from firstorder.backends.folder import read_shape
from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe

RANKS = 2
SERVER = ("quantization=none", "tensor=1", "max_prompt=40", "max_tokens=24", "max_sequences=64", "kv_cache_mib=64")
STARTS, RUNS = 300.0, 900.0  # seconds that the server and the step are waited for


def rehearse(bundle: Path, model: Path, recipe: Recipe, work: Path) -> dict[str, Any]:
    """Serve a small model, train it for one global step through the bundle's launchers, and say what was logged.

    Args:
        bundle: a folder with `serve.sh` and `train.sh`.
        model: a small model folder of `firstorder coldstart`, whose task is `sums`.
        recipe: that of the bundle; its batch is cut to one prompt an update.
        work: an empty folder for the run and the weights.

    Raises:
        ConfigError: the model does not load, or a launcher fails, with its last line.
    """
    started = time.perf_counter()
    read_shape(model)
    port = free_port()
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "MODEL": str(model.resolve()),
        "RUN": str(work / "run"),
        "SHARED": str(work / "weights"),
        "LOGS": str(work / "logs"),
        "NODES": "1",
        "RANKS_PER_NODE": str(RANKS),
        "ENGINES_PER_NODE": "1",
        "GPUS_PER_ENGINE": "1",
        "SERVER_PORT": str(port),
        "HEAD_PORT": str(free_port()),
        "ENVIRONMENT": "",
        "NEEDED_GIB": "0",
        "MAX_FAULTS": "1",
        "ROLLOUT_HOSTS": "127.0.0.1",
    }
    _checked(bundle, environment, work / "preflight.log")
    with _served(bundle, environment, port, work / "serve.log"), (work / "train.log").open("w") as log:
        command = ["bash", str(bundle / "train.sh"), *_sets(train_settings(recipe))]
        try:
            code = subprocess.run(
                command, env=environment, stdout=log, stderr=log, timeout=RUNS, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    if code:
        raise ConfigError(f"the rehearsal of train.sh failed: {_why(work / 'train.log')}")
    (line,) = (work / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {"ranks": RANKS, "servers": 1, "seconds": time.perf_counter() - started, "metrics": json.loads(line)}


def train_settings(recipe: Recipe) -> list[str]:
    """What makes a step small: one prompt an update, four responses each, short rows."""
    n = recipe.schedule.minibatches
    schedule = ["schedule.steps=1", f"schedule.prompts={n}", "schedule.group_size=4"]
    rows = ["pack_length=64", "microbatch_rows=2", "loss_chunks=2", "expert=2", "evaluate_every=0"]
    return [*schedule, "task.kind=sums", *(f"torchtitan.{one}" for one in rows), *(f"vllm.{one}" for one in SERVER)]


def _checked(bundle: Path, environment: dict[str, str], file: Path) -> None:
    """The bundle's preflight of both roles; this machine has no GPUs and another model."""
    for role in ("serve", "train"):
        with file.open("w") as log:
            command = ["bash", str(bundle / "preflight.sh"), role, "--gpus", "0", "--any-model"]
            if subprocess.run(command, env=environment, stdout=log, stderr=log, check=False).returncode:
                raise ConfigError(f"the rehearsal of preflight.sh failed: {_why(file)}")


@contextmanager
def _served(bundle: Path, environment: dict[str, str], port: int, file: Path) -> Iterator[None]:
    """The bundle's server while the block runs."""
    with file.open("w") as log:
        command = ["bash", str(bundle / "serve.sh"), *_sets(SERVER)]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + STARTS
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ConfigError(f"the rehearsal of serve.sh failed: {_why(file)}")
                time.sleep(0.5)
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).read()
    except OSError:
        return False
    return True


def _sets(assignments: list[str] | tuple[str, ...]) -> list[str]:
    return [word for one in assignments for word in ("--set", one)]


def _why(log: Path) -> str:
    """The line of a log that says most: the last one of firstorder's own, or the last."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["no output"]
    own = [line for line in lines if line.startswith("firstorder: ")]
    return (own or lines)[-1].removeprefix("firstorder: ")
