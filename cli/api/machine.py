"""The machine as far as a run depends on it: processor, memory, GPUs, disk."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # that kernels of torch and vLLM are chosen by
PATIENCE = 5.0  # seconds for the driver to answer


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a run finds.

    Args:
        system: operating system and kind of processor.
        cores: that this process may use.
        features: of `FEATURES` those that the processor has; None where the system does not say.
        memory: bytes that can be taken without swapping.
        gpus: a line each, as the driver of NVIDIA has it.
        folder: the current one.
        disk_free: bytes that its disk has left.
        writable: whether a file can be made there.
    """

    system: str
    cores: int
    features: tuple[str, ...] | None
    memory: int
    gpus: tuple[str, ...]
    folder: str
    disk_free: int
    writable: bool


def machine() -> Machine:
    """This machine, seen from the current folder."""
    from firstorder.core.memory import available

    folder = Path.cwd()
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        features=features(CPUINFO),
        memory=available(),
        gpus=gpus(),
        folder=str(folder),
        disk_free=shutil.disk_usage(folder).free,
        writable=_takes_files(folder),
    )


def _takes_files(folder: Path) -> bool:
    from firstorder.core.runs.files import check_place

    try:
        check_place(folder / "runs")
    except OSError:
        return False
    return True


def features(file: Path) -> tuple[str, ...] | None:
    """Which of `FEATURES` a file such as /proc/cpuinfo lists; None where it lists no flags."""
    lines = file.read_text().splitlines() if file.exists() else []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), None)
    return None if flags is None else tuple(name for name in FEATURES if name in flags)


def gpus() -> tuple[str, ...]:
    """Name, memory and driver of each GPU of NVIDIA; none where its driver is absent or does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())
