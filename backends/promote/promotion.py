"""What a bundle is made of: what is promoted, where it will run, and the evidence for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from firstorder.backends.folder import Shape
from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.vllm.config import Vllm
from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe
from firstorder.core.training.inert import inert_parts, notes

from .dry import DryRun
from .plan import Plan, Step
from .timing import LOST, Timing


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a cluster's scheduler must know; what is left out is a placeholder that the job refuses to run with.

    Args:
        account: that pays.
        partition: of the nodes.
    """

    account: str = "SET_ACCOUNT"
    partition: str = "SET_PARTITION"

    def __post_init__(self) -> None:
        for option, value in vars(self).items():
            if not re.fullmatch(r"[\w.,@:+-]+", value):
                raise ConfigError(f"--{option} must be a name that the cluster's scheduler knows, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """A recipe on its way to a cluster.

    Args:
        recipe: the method.
        source: its TOML, resolved.
        shape: of the model.
        titan, vllm, task: settings of the engines and the task.
        plan: ranks, nodes and rollout engines.
        step: what a global step moves, and how long it takes.
        timing: the whole run.
        dry_run: memory and shardings of the trainer.
        gate: what the simulator says of the recipe, as plain numbers.
        job: account and partition.
    """

    recipe: Recipe
    source: bytes
    shape: Shape
    titan: Torchtitan
    vllm: Vllm
    task: TaskSettings
    plan: Plan
    step: Step
    timing: Timing
    dry_run: DryRun
    gate: dict[str, Any]
    job: Job

    @property
    def notes(self) -> list[str]:
        """What a reader must not miss: inert parts, host memory that full-length rollouts would fill, long steps."""
        said = [f"Inert: {part}." for part in inert_parts(self.recipe, stale=self.recipe.schedule.minibatches > 1)]
        said += [f"{line}." for line in notes(self.recipe)]
        if self.step.host > self.plan.gpu.host:
            share = self.plan.gpu.host / self.step.host
            said.append(
                "The routes of a rollout fit into the host memory of a node as long as responses are on average "
                f"shorter than {share:.0%} of the longest."
            )
        if self.timing.step > LOST:
            said.append(f"A step takes up to {self.timing.step / 60:.0f} min, so a kill without notice loses as much.")
        return said if self.gate["stable"] else [*said, "Promoted with --force."]
