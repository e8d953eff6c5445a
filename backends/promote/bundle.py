"""The files of a bundle: engines' settings, launchers for a cluster, and a manifest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.vllm.config import Vllm
from firstorder.core.errors import ConfigError
from firstorder.core.settings.toml import dump

from .environment import wheel_name
from .hardware import CPUS_PER_NODE, GIB, GPUS_PER_NODE
from .models import ID
from .plan import Plan, Step
from .timing import Timing, clock

TEMPLATES = resources.files("firstorder.backends.promote") / "templates"
SCRIPTS = ("install.sh", "download.sh", "preflight.sh", "node.sh", "task.sh", "train.sh", "serve.sh")
LAUNCHERS = ("settings.env", *SCRIPTS, "job.sbatch", "job.yaml")
CHECKPOINTS = 3  # that torchtitan keeps, the newest ones


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a cluster's scheduler wants to be told; what is left out is a placeholder that the job refuses to run with.

    Args:
        account: that pays.
        partition: of the nodes.
    """

    account: str = "SET_ACCOUNT"
    partition: str = "SET_PARTITION"

    def __post_init__(self) -> None:
        for option, value in vars(self).items():
            if not re.fullmatch(r"[\w.,@:+-]+", value):
                raise ConfigError(f"--{option} must be a name of this cluster's, got {value!r}")


def launchers(name: str, where: Plan, moved: Step, run: Timing, vllm: Vllm, job: Job) -> dict[str, str]:
    """The launchers by file name, the numbers of a plan filled in.

    Args:
        name: of the recipe; jobs are called after it.
        where: ranks, nodes and engines.
        moved: what a step writes.
        run: how long a job may take and how it ends.
        vllm: how many GPUs an engine has.
        job: account and partition.
    """
    title = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "recipe"
    values = {
        "NAME": title,
        "ACCOUNT": job.account,
        "PARTITION": job.partition,
        "TIME": "SET_TIME" if run.allotted is None else clock(run.allotted),
        "CPUS": CPUS_PER_NODE,
        "NOTICE": run.notice,
        "RESTARTS": run.restarts,
        "NEEDED_GIB": -(-disk(moved) // GIB),
        "MODEL": ID.rpartition("/")[2],
        "MODEL_ID": ID,
        "WHEEL": wheel_name(),
        "NODES": where.nodes,
        "ROLLOUT_NODES": where.rollout_nodes,
        "ALL_NODES": where.nodes + where.rollout_nodes,
        "RANKS_PER_NODE": where.ranks_per_node,
        "ENGINES_PER_NODE": where.engines_per_node,
        "GPUS_PER_ENGINE": vllm.tensor,
        "GPUS_PER_NODE": GPUS_PER_NODE,
        "SERVED_GPUS": where.engines_per_node * vllm.tensor,
        "ROLLOUT_PODS": ",".join(f"{title}-rollout-{i}.{title}" for i in range(where.rollout_nodes)),
    }
    return {file: _filled((TEMPLATES / file).read_text(encoding="utf-8"), values) for file in LAUNCHERS}


def disk(moved: Step) -> int:
    """Bytes of a run: the checkpoints that are kept, one weight sync beside the one before it, the trained model."""
    return CHECKPOINTS * moved.checkpoint + 2 * moved.weights + moved.weights // 2


def settings(titan: Torchtitan, vllm: Vllm, task: TaskSettings, where: Plan) -> str:
    """engines.toml: the sections in full, but for what settings.env says."""
    sections = {
        "torchtitan": titan.model_dump(exclude={"model"}),
        "vllm": vllm.model_dump(exclude={"servers", "shared_folder"})
        | {"kv_cache_mib": where.kv_cache >> 20, "max_sequences": where.sequences},
        "task": task.model_dump(),
    }
    return dump(sections)


def manifest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, in hexadecimal, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest(path.read_bytes()) for path in files}


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _filled(text: str, values: Mapping[str, object]) -> str:
    return re.sub(r"@([A-Z_]+)@", lambda match: str(values[match[1]]), text)
