"""The files of a bundle: recipe, engines' settings, launchers, environment, and what they say about themselves."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path

from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.vllm.config import Vllm
from firstorder.core.toml import dump

from .hardware import GPUS_PER_NODE
from .plan import Plan

TEMPLATES = resources.files("firstorder.backends.promote") / "templates"
LAUNCHERS = ("settings.env", "serve.sh", "train.sh", "job.sbatch", "job.yaml")
EXTRA = "engines-cuda"


def launchers(name: str, where: Plan, vllm: Vllm) -> dict[str, str]:
    """The launchers by file name, the numbers of a plan filled in.

    Args:
        name: of the recipe; jobs are called after it.
        where: ranks, nodes and engines.
        vllm: how many GPUs an engine has.
    """
    job = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "recipe"
    values = {
        "NAME": job,
        "NODES": where.nodes,
        "ROLLOUT_NODES": where.rollout_nodes,
        "ALL_NODES": where.nodes + where.rollout_nodes,
        "RANKS_PER_NODE": where.ranks_per_node,
        "ENGINES_PER_NODE": where.engines_per_node,
        "GPUS_PER_ENGINE": vllm.tensor,
        "GPUS_PER_NODE": GPUS_PER_NODE,
        "ROLLOUT_PODS": ",".join(f"{job}-rollout-{i}.{job}" for i in range(where.rollout_nodes)),
    }
    return {file: _filled((TEMPLATES / file).read_text(encoding="utf-8"), values) for file in LAUNCHERS}


def settings(titan: Torchtitan, vllm: Vllm, task: TaskSettings, where: Plan) -> str:
    """engines.toml: the sections in full, but for what settings.env says."""
    sections = {
        "torchtitan": titan.model_dump(exclude={"model"}),
        "vllm": vllm.model_dump(exclude={"servers", "shared_folder"})
        | {"kv_cache_mib": where.kv_cache >> 20, "max_sequences": where.sequences},
        "task": task.model_dump(),
    }
    return dump(sections)


def lock() -> str:
    """environment.lock: the packages that the engines need, with the versions that are installed here.

    The closure of the extra over what is installed. A CPU build stands for the CUDA build of its version; what only
    CUDA needs is left to the requirements of that build.
    """
    wanted, found = [f"firstorder; extra == '{EXTRA}'"], dict[str, str]()
    while wanted:
        requirement = wanted.pop()
        name = _name(requirement)
        if name in found:
            continue
        installed = _installed(name)
        if installed is None:
            if "==" in requirement:
                found[name] = re.split(r"[;\s]", requirement.partition("==")[2])[0]
            continue
        found[name] = installed.version.partition("+")[0]
        for needed in installed.requires or ():
            extra = re.search(r"extra == ['\"]([^'\"]+)", needed)
            if extra is None or (name == "firstorder" and extra[1] == EXTRA):
                wanted.append(needed)
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()))


def manifest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, in hexadecimal, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest(path.read_bytes()) for path in files}


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _filled(text: str, values: Mapping[str, object]) -> str:
    return re.sub(r"@([A-Z_]+)@", lambda match: str(values[match[1]]), text)


def _name(requirement: str) -> str:
    plain = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert plain is not None
    return re.sub(r"[-_.]+", "-", plain[0]).lower()


def _installed(name: str) -> metadata.Distribution | None:
    for one in (name, f"{name}-cpu"):
        try:
            return metadata.distribution(one)
        except metadata.PackageNotFoundError:
            continue
    return None
