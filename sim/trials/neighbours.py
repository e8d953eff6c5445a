"""The recipe's twin in the simulator and its neighbours, each with one part changed; and the world that they train in.

The twin has the recipe's method, its N and its groups; engines, learning rate, prompts and length are the trial's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import build
from firstorder.sim.config import Numerics, Sim
from firstorder.sim.exact.forms import form

from .long import LongCondition

SELF = "the recipe"
Change = Mapping[str, Mapping[str, Any]]  # keys by section
PART = {
    "correction": "no train-infer importance sampling",
    "lr": "the step size",
    "router_replay": "the replay",
    "clip": "the clip",
    "schedule": "the number of updates a rollout",
}
"""What is at fault where changing that part alone makes a recipe stable, in the order in which they are listed."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much is trained; chosen on seeds below 1000.

    Args:
        seeds: policies, counting up from `first_seed`.
        first_seed: whose results no setting was chosen on.
        updates: of a run.
        least_steps: rollouts of a run, where N is large.
        evaluations: exact ones of a run.
        problems: that are trained on.
        longest: tokens, the horizon of an exact trial.
        sampled_longest: tokens, of a trial on sampled responses.
        prompts, group: of a mini-batch of a sampled trial.
        lr, sampled_lr: AdamW's; a sampled update is noisy, so its steps are smaller.
        value: J of π to begin with, which is what a policy can lose.
    """

    seeds: int = 8
    first_seed: int = 3000
    updates: int = 600
    least_steps: int = 8
    evaluations: int = 12
    problems: int = 8
    longest: int = 32768
    sampled_longest: int = 512
    prompts: int = 2
    group: int = 8
    lr: float = 0.002
    sampled_lr: float = 0.0005
    value: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A recipe with one part changed: which, a key of `PART` or None for the twin itself, and what it trains."""

    part: str | None
    recipe: Recipe


def exact(recipe: Recipe) -> bool:
    """Whether the expected update of a recipe has an exact form where contexts merge."""
    return form(recipe) is not None


def neighbours(recipe: Recipe, extent: Extent, *, sampled: bool) -> dict[str, Neighbour]:
    """The twin, under `SELF`, and what differs from it in one part, by what was changed.

    A change that would contradict the rest of the recipe is no neighbour, nor is one that needs samples where the twin
    needs none: the two would not be compared under the same variance.
    """
    found = {SELF: Neighbour(part=None, recipe=twin(recipe, {}, extent, sampled=sampled))}
    for name, (part, change) in _changes(recipe).items():
        halved = 0.5 if part == "lr" else 1.0
        try:
            each = twin(recipe, change, extent, sampled=sampled, share=halved)
        except ConfigError:
            continue
        if sampled or exact(each):
            found[name] = Neighbour(part=part, recipe=each)
    return found


def twin(recipe: Recipe, change: Change, extent: Extent, *, sampled: bool, share: float = 1.0) -> Recipe:
    """A recipe with some parts changed, under the schedule of the trial and a `share` of its learning rate.

    Raises:
        ConfigError: the change contradicts the rest of the recipe.
    """
    tree = recipe.model_dump(exclude={"about": {"scope"}})
    changed = build(Recipe, tree | {key: tree[key] | dict(table) for key, table in change.items()})
    n = changed.schedule.minibatches
    schedule = {
        "steps": max(extent.least_steps, extent.updates // n),
        "prompts": n * (extent.prompts if sampled else 1),
        "group_size": extent.group if sampled else recipe.schedule.group_size,
    }
    lr = share * (extent.sampled_lr if sampled else extent.lr)
    return changed.model_copy(
        update={
            "schedule": changed.schedule.model_copy(update=schedule),
            "optimizer": changed.optimizer.model_copy(update={"kind": "adamw", "lr": lr}),
        }
    )


def world(recipe: Recipe, horizon: int, numerics: Numerics, extent: Extent, *, sampled: bool) -> Sim:
    """The simulator that a twin is tried in: that of `long`, with engines of its own."""
    condition = LongCondition(horizon=horizon, value=extent.value, problems=extent.problems, sampled=sampled)
    steps = recipe.schedule.steps
    return condition.world(range(extent.first_seed, extent.first_seed + extent.seeds)).model_copy(
        update={
            "numerics": numerics,
            "evaluate_every": max(1, steps // extent.evaluations),
            "checkpoint_every": steps,
        }
    )


def corrected(recipe: Recipe) -> bool:
    """Whether a part of the weight compares with what μ said: the train-infer importance sampling."""
    return any(
        (recipe.compared(key) or "").endswith("/mu") for key in ("ratio.of", "correction.kind", "rejection.kind")
    )


def correction(recipe: Recipe) -> tuple[str, Change]:
    """The train-infer factor for a recipe without one, and its name: in the ratio, but where a clip bounds that."""
    if recipe.parts["clip.kind"].compares == "of":
        return "correction.kind = ratio", {"correction": {"kind": "ratio", "of": "old/mu", "span": "token"}}
    return "ratio.of = theta/mu", {"ratio": {"of": "theta/mu"}}


def _changes(recipe: Recipe) -> dict[str, tuple[str, Change]]:
    """Every change by its name: the part that it is of, and the keys."""
    n, replay, clip = recipe.schedule.minibatches, recipe.router_replay.mode, recipe.clip.kind
    changes: dict[str, tuple[str, Change]] = {}
    if not corrected(recipe):
        name, change = correction(recipe)
        changes[name] = "correction", change
    changes["optimizer.lr halved"] = "lr", {}
    for mode in ("disabled", "R2", "R3"):
        idle = n == 1 and {mode, replay} == {"disabled", "R2"}  # R2 replays what is chosen anyway
        if mode != replay and not idle:
            changes[f"router_replay.mode = {mode}"] = "router_replay", {"router_replay": {"mode": mode}}
    other = "minirl" if clip == "none" else "none"
    if n > 1 or recipe.compared("clip.kind") not in (None, "theta/old"):  # at N = 1 theta/old is 1
        changes[f"clip.kind = {other}"] = "clip", {"clip": {"kind": other, "low": 0.2, "high": 0.27}}
    for updates in (n // 2, 2 * n):
        if updates:
            schedule = {"minibatches": updates, "prompts": updates}
            changes[f"schedule.minibatches = {updates}"] = "schedule", {"schedule": schedule}
    return changes
