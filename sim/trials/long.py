"""Where recipes are compared on long responses: contexts that merge, a cold start that earns so much, engines so far
apart, N updates a rollout, a step size.

One base condition, from which studies, claims and the trial of `promote` depart in what they ask about. Everything was
chosen on seeds below 1000.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import build, read
from firstorder.sim.config import Numerics, Sim
from firstorder.sim.sweep.ensemble import Cell

EVALUATIONS = 12
LOGGED = 8  # responses drawn for the logs of an expected update
PROMPTS, GROUP = 8, 8  # of a sampled update


@dataclass(frozen=True, kw_only=True)
class LongCondition:
    """A condition on long responses.

    Args:
        horizon: tokens of a response, T.
        value: J of π to begin with.
        noise: relative noise of the rollout engine, fixed by context.
        minibatches: updates a rollout, the N of the paper.
        lr: AdamW's.
        updates: of a run, a multiple of `minibatches`.
        problems: of 8 positions, each with 16 contexts.
        sampled: whether an update is the mean over 64 responses; else it is the exact expected one.
        sim: other keys of `[sim]`, by name.
        recipe: other keys of the recipe, dotted.
    """

    horizon: int = 512
    value: float = 0.5
    noise: float = 0.1
    minibatches: int = 1
    lr: float = 0.002
    updates: int = 128
    problems: int = 16
    sampled: bool = False
    sim: tuple[tuple[str, Any], ...] = ()
    recipe: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        """Short, and a file name."""
        parts = [f"t{self.horizon}", f"j{self.value:g}", f"noise{self.noise:g}", f"n{self.minibatches}"]
        parts += [f"lr{self.lr:g}", f"u{self.updates}", f"p{self.problems}", *["sampled"] * self.sampled]
        parts += [f"{key}-{_word(value)}" for key, value in (*self.sim, *self.recipe)]
        return "-".join(parts)

    def but(self, **changes: Any) -> LongCondition:
        """Another condition."""
        return replace(self, **changes)

    def world(self, seeds: range) -> Sim:
        """The `[sim]` section."""
        steps = self.updates // self.minibatches
        settings: dict[str, Any] = {
            "world": "graph",
            "task": "chain",
            "update": "sampled" if self.sampled else "expected",
            "prompts": self.problems,
            "positions": 8,
            "vocab": 8,
            "right": 2,
            "shared": 0.8,
            "horizon": self.horizon,
            "width": 24,
            "coldstart": "calibrated",
            "coldstart_value": self.value,
            "coldstart_steps": 200,
            "numerics": Numerics(kind="noise", scale=self.noise),
            "members": len(seeds),
            "seed": seeds.start,
            "evaluate_every": max(1, steps // EVALUATIONS),
            "checkpoint_every": steps if not self.sampled else max(1, steps // EVALUATIONS),
        }
        return Sim(**settings | dict(self.sim))

    def method(self, name: str) -> Recipe:
        """A shipped recipe under the condition's schedule and learning rate."""
        n = self.minibatches
        prompts, group = (PROMPTS, GROUP) if self.sampled else (1, LOGGED)
        schedule = {"steps": self.updates // n, "prompts": prompts * n, "group_size": group, "minibatches": n}
        tree = {**read(name), "schedule": schedule, "optimizer": {"lr": self.lr}}
        for key, value in self.recipe:
            section, field = key.split(".")
            tree[section] = {**tree.get(section, {}), field: value}
        return build(Recipe, tree)

    def cell(self, name: str, seeds: range) -> Cell:
        """One recipe in this condition, the seeds as members of one computation."""
        label = f"{self}-s{seeds.start}-{name}"
        return Cell(name=label, point={"cell": label}, recipe=self.method(name), sim=self.world(seeds))


BASE = LongCondition()


def course(objective: Tensor, value: float) -> Tensor:
    """J at the evaluations `[S, K]` with what a policy starts with in front, `[S, 1 + K]`: it can be lost too."""
    return torch.cat([torch.full_like(objective[:, :1], value), objective], dim=-1)


def _word(value: Any) -> str:
    """A value in a file name."""
    if isinstance(value, Numerics):
        fields = value.model_dump(exclude_defaults=True)
        return "-".join(f"{key}{fields[key]}" for key in sorted(fields))
    return str(value)
