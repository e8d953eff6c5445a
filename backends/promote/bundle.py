"""The files of a bundle: recipe, engines' settings, launchers for a cluster, evidence, and a manifest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from firstorder.core.runs.files import to_json
from firstorder.core.settings.toml import dump

from . import environment
from .hardware import CPUS_PER_NODE, GIB, GPUS_PER_NODE
from .models import ID
from .promotion import Promotion
from .readme import plain, readme
from .timing import clock

TEMPLATES = resources.files("firstorder.backends.promote") / "templates"
SCRIPTS = ("install.sh", "download.sh", "preflight.sh", "node.sh", "task.sh", "train.sh", "serve.sh")
LAUNCHERS = ("settings.env", *SCRIPTS, "job.sbatch", "job.yaml")


def contents(promotion: Promotion) -> dict[str, bytes]:
    """The files of a bundle by name, but for figures, rehearsal and manifest."""
    texts = launchers(promotion) | {
        "engines.toml": settings(promotion),
        "environment.lock": environment.lock(),
        "README.md": readme(promotion),
        "evidence/gate.json": to_json(promotion.gate),
        "evidence/dryrun.json": to_json(plain(promotion)),
    }
    files = {"recipe.toml": promotion.source, environment.wheel_name(): environment.wheel()}
    return files | {name: text.encode() for name, text in texts.items()}


def launchers(promotion: Promotion) -> dict[str, str]:
    """The launchers by file name, the numbers of the plan filled in."""
    plan, timing, job, vllm = promotion.plan, promotion.timing, promotion.job, promotion.vllm
    title = re.sub(r"[^a-z0-9]+", "-", promotion.recipe.about.name.lower()).strip("-")[:40].strip("-") or "recipe"
    values = {
        "NAME": title,
        "ACCOUNT": job.account,
        "PARTITION": job.partition,
        "TIME": "SET_TIME" if timing.allotted is None else clock(timing.allotted),
        "CPUS": CPUS_PER_NODE,
        "NOTICE": timing.notice,
        "RESTARTS": timing.restarts,
        "NEEDED_GIB": -(-promotion.step.disk // GIB),
        "MODEL": ID.rpartition("/")[2],
        "MODEL_ID": ID,
        "WHEEL": environment.wheel_name(),
        "NODES": plan.nodes,
        "ROLLOUT_NODES": plan.rollout_nodes,
        "ALL_NODES": plan.nodes + plan.rollout_nodes,
        "RANKS_PER_NODE": plan.ranks_per_node,
        "ENGINES_PER_NODE": plan.engines_per_node,
        "GPUS_PER_ENGINE": vllm.tensor,
        "GPUS_PER_NODE": GPUS_PER_NODE,
        "SERVED_GPUS": plan.engines_per_node * vllm.tensor,
        "ROLLOUT_PODS": ",".join(f"{title}-rollout-{i}.{title}" for i in range(plan.rollout_nodes)),
    }
    return {file: _filled((TEMPLATES / file).read_text(encoding="utf-8"), values) for file in LAUNCHERS}


def settings(promotion: Promotion) -> str:
    """engines.toml: the sections in full, but for what settings.env says."""
    plan = promotion.plan
    sections = {
        "torchtitan": promotion.titan.model_dump(exclude={"model"}),
        "vllm": promotion.vllm.model_dump(exclude={"servers", "shared_folder"})
        | {"kv_cache_mib": plan.kv_cache >> 20, "max_sequences": plan.sequences},
        "task": promotion.task.model_dump(),
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
