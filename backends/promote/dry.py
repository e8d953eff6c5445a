"""The dry run in a process of its own, which has the fake process group to itself and whose memory can be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, fields
from typing import Any

from firstorder.backends.folder import Shape
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe

PARTS = ("parameters", "reference", "buffers", "gradients", "optimizer", "activations", "logits")


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What `backends.torchtitan.dryrun` reported.

    Args:
        memory: bytes by part of `PARTS`.
        shardings: name, whole, local, mesh and placements of every parameter.
        error: of the estimate for a small model, as a share of what that model allocates.
        seconds: of a processor that the dry run took.
        resident: bytes that it took.
    """

    memory: dict[str, int]
    shardings: list[dict[str, Any]]
    error: float
    seconds: float
    resident: int

    @property
    def peak(self) -> int:
        """Bytes of a rank at the peak of an update."""
        return sum(self.memory[part] for part in PARTS)


def dry_run(shape: Shape, titan: Torchtitan, recipe: Recipe, num_ranks: int) -> DryRun:
    """Run one update of a model over fake ranks.

    Raises:
        ConfigError: the layout does not fit, or the process failed, with its last line.
    """
    specification = {
        "shape": vars(shape),
        "torchtitan": titan.model_dump(mode="json"),
        "recipe": recipe.model_dump(mode="json"),
        "num_ranks": num_ranks,
    }
    command = [sys.executable, "-W", "ignore", "-m", "firstorder.backends.torchtitan.dryrun"]
    # torchtitan settles on a device when it is imported, so a GPU has to be hidden before the process starts
    there = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.run(
        command, input=json.dumps(specification), capture_output=True, text=True, check=False, env=there
    )
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"it ended with code {process.returncode}"]
        raise ConfigError(lines[-1] if process.returncode == 2 else f"the dry run failed: {lines[-1]}")
    report = json.loads(process.stdout)
    return DryRun(**{field.name: report[field.name] for field in fields(DryRun)})


def per_position(shape: Shape, titan: Torchtitan, recipe: Recipe, num_ranks: int, peak: int) -> float:
    """Bytes that one more position of every row adds to the peak, from a second dry run of half as many."""
    half = titan.pack_length // 2
    shorter = dry_run(shape, titan.model_copy(update={"pack_length": half}), recipe, num_ranks)
    return (peak - shorter.peak) / (titan.pack_length - half)


def layers_folded(shardings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shardings with the layers that are alike as one, its number replaced by a star."""
    folded: dict[str, dict[str, Any]] = {}
    for sharding in shardings:
        name = ".".join("*" if part.isdigit() else part for part in sharding["name"].split("."))
        first = folded.setdefault(name, sharding | {"name": name, "layers": 0})
        if any(first[key] != sharding[key] for key in ("whole", "local", "mesh", "placements")):
            folded[sharding["name"]] = sharding | {"layers": 1}
        else:
            first["layers"] += 1
    return list(folded.values())
