"""What a node needs before it starts: `preflight.sh` of a bundle runs this on every one, and each fault is a line.

    python -m firstorder.backends.promote.preflight BUNDLE --model FOLDER --gpus 8 --ports 8001,8002

Neither torch nor an engine is imported, so that it is over in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from firstorder.core.errors import FirstOrderError

from .environment import installed
from .hardware import GIB
from .timing import START

EDITED = ("settings.env", "job.sbatch", "job.yaml")  # by whoever runs the bundle
IDLE = 1024  # MiB of a GPU that nothing uses
SHARED_MEMORY = GIB  # bytes of /dev/shm: NCCL and vLLM exchange through it
Run = Callable[[Sequence[str]], str]


def whole(bundle: Path) -> list[str]:
    """Files that are not those of the manifest."""
    from .bundle import digest

    manifest = bundle / "manifest.json"
    if not manifest.is_file():
        return []
    hashes = json.loads(manifest.read_text(encoding="utf-8"))["sha256"]
    files = {name: bundle / name for name in hashes if name not in EDITED and not name.startswith("evidence/")}
    changed = [name for name, file in files.items() if not file.is_file() or digest(file.read_bytes()) != hashes[name]]
    return [f"{name} is not the file that was promoted; copy the bundle again" for name in changed]


def versions(lock: str) -> list[str]:
    """Packages that are not installed as the lock has them."""
    faults = []
    for line in lock.splitlines():
        name, pinned, version = line.partition("==")
        if not pinned or line.startswith("#"):
            continue
        distribution = installed(name)
        if distribution is None or distribution.version.partition("+")[0] != version:
            faults.append(
                f"{name} {distribution.version if distribution else 'is missing'}, and environment.lock has {version}"
            )
    rest = [f"{len(faults) - 3} more packages differ"] if len(faults) > 3 else []
    return [f"{line}; run install.sh, and set ENVIRONMENT" for line in [*faults[:3], *rest]]


def gpus(needed: int, memory: int, run: Run) -> list[str]:
    """GPUs that are missing, smaller than those of the plan, or in use."""
    if not needed:
        return []
    try:
        rows = run(["nvidia-smi", "--query-gpu=memory.total,memory.used", "--format=csv,noheader,nounits"])
    except (OSError, subprocess.SubprocessError) as error:
        return [f"nvidia-smi does not run ({error}); is this a node with GPUs?"]
    cards = [[int(cell) for cell in row.split(",")] for row in rows.splitlines() if row.strip()]
    faults = [f"{len(cards)} GPUs, and {needed} are needed"] if len(cards) < needed else []
    for number, (total, used) in enumerate(cards[:needed]):
        if total < 0.95 * (memory >> 20):
            faults.append(
                f"GPU {number} has {total} MiB, and the bundle was made for {memory >> 20}; promote with --gpu"
            )
        elif used > IDLE:
            faults.append(f"GPU {number} is in use: {used} MiB; end what runs there")
    return faults


def model(folder: Path, sizes: Mapping[str, Any] | None) -> list[str]:
    """What the model's folder lacks, or has otherwise than the model that was promoted."""
    from firstorder.backends.folder import read_shape

    try:
        shape = json.loads(json.dumps(vars(read_shape(folder))))
    except FirstOrderError as error:
        return [f"{error}; see MODEL in settings.env, and download.sh"]
    faults = [
        f"{folder} has {name} = {shape.get(name)}, and the bundle was made for {size}; see MODEL in settings.env"
        for name, size in (sizes or {}).items()
        if shape.get(name) != size
    ]
    try:
        index = folder / "model.safetensors.index.json"
        shards = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    except (OSError, ValueError, KeyError, AttributeError):
        return [*faults, f"{index} cannot be read; run download.sh again"]
    needed = [*sorted(shards), "tokenizer_config.json"]
    faults += [f"{folder} lacks {name}; run download.sh again" for name in needed if not (folder / name).is_file()]
    return faults


def ports(numbers: Iterable[int]) -> list[str]:
    """Ports that something listens on."""
    faults = []
    for number in numbers:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("", number))
            except OSError as error:
                faults.append(f"port {number}: {error.strerror}; set SERVER_PORT or HEAD_PORT in settings.env")
    return faults


def name(nodes: int, interface: str) -> list[str]:
    """A name of this node that leads back to itself: gloo would tell the others to connect to themselves."""
    if nodes == 1 or interface:
        return []
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError as error:
        address = str(error)
    if address.startswith("127.") or not address[:1].isdigit():
        return [
            f"{socket.gethostname()} is {address} here, which other nodes do not reach; set INTERFACE in settings.env"
        ]
    return []


def space(folders: Iterable[Path], needed: int) -> list[str]:
    """Folders with less free space than needed bytes, and /dev/shm."""
    faults = []
    for folder in folders:
        there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        free = shutil.disk_usage(there).free
        if free < needed:
            faults.append(
                f"{folder} has {free / GIB:.0f} GiB free, and {needed / GIB:.0f} are needed; see settings.env"
            )
        if not os.access(there, os.W_OK):
            faults.append(f"{there} cannot be written; see RUN and SHARED in settings.env")
    if needed and shutil.disk_usage("/dev/shm").free < SHARED_MEMORY:
        faults.append("/dev/shm has less than 1 GiB free; give the container more shared memory")
    return faults


def task(settings: Mapping[str, Any]) -> list[str]:
    """Files of problems that are not there."""
    files = settings.get("task", {}).get("files", [])
    return [
        f"task.files: {file} cannot be read here; put it where every node of the trainer reads it"
        for file in files
        if not os.access(file, os.R_OK)
    ]


def left(notice: int, environment: Mapping[str, str]) -> list[str]:
    """A job that ends before its first step."""
    end = environment.get("SLURM_JOB_END_TIME", "")
    seconds = int(end) - time.time() if end.isdigit() else float("inf")
    if seconds < START + notice:
        return [f"{seconds:.0f} s are left to the job, and a start and a step need {START + notice:.0f}; raise --time"]
    return []


def _run(words: Sequence[str]) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def main() -> None:
    """Check this node; faults are lines on standard error, and exit code 1."""
    parser = argparse.ArgumentParser(description="What a node needs before it starts.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--ports", default="")
    parser.add_argument("--space", type=Path, action="append", default=[])
    parser.add_argument("--needed-gib", type=int, default=0)
    parser.add_argument("--notice", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--interface", default="")
    parser.add_argument("--any-model", action="store_true", help="of whatever sizes, as a rehearsal has")
    options = parser.parse_args()
    dry = json.loads((options.bundle / "evidence/dryrun.json").read_text(encoding="utf-8"))
    faults = [
        *whole(options.bundle),
        *versions((options.bundle / "environment.lock").read_text(encoding="utf-8")),
        *gpus(options.gpus, dry["plan"]["gpu"]["memory"], _run),
        *model(options.model, None if options.any_model else dry["shape"]),
        *task(
            {} if options.any_model else tomllib.loads((options.bundle / "engines.toml").read_text(encoding="utf-8"))
        ),
        *ports(int(one) for one in options.ports.split(",") if one),
        *name(options.nodes, options.interface),
        *space(options.space, options.needed_gib * GIB),
        *left(options.notice, os.environ),
    ]
    for line in faults:
        print(f"firstorder: {socket.gethostname()}: {line}", file=sys.stderr)
    if not faults:
        print(f"{socket.gethostname()}: fit to start")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
