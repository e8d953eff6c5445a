"""Parts of a recipe that cannot act in its schedule: named at the start, and recorded beside what the others did."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe
from firstorder.core.quantities import Quantity

from .arms import Arm

PARTS = {
    "ratio": ("ratio.of", "the ratio is 1"),
    "router_floor": ("ratio.router_floor", "its factor is 1"),
    "clip": ("clip.kind", "no ratio leaves 1"),
    "correction": ("correction.kind", "its ratio is 1"),
    "rejection": ("rejection.kind", "its log-ratios are 0"),
    "router_replay": ("router_replay.mode", "its own experts"),
    "reference_kl": ("terms.reference_kl", "the KL and its gradient are 0"),
    "squared_log_ratio": ("terms.squared_log_ratio", "the log-ratio is 0"),
}
"""The parts that compare two policies, as receipts name them: key of the recipe, and what is so where those agree."""

QUANTITIES: dict[str, Quantity] = {
    f"inert/{part}": Quantity(
        formula=f"1 where {part} cannot act in this schedule, else 0",
        unit="1",
        source="inert_parts of core.training.inert",
    )
    for part in PARTS
}


def inert_parts(recipe: Recipe, *, stale: bool, mismatch: bool = True, moved: bool | None = None) -> list[str]:
    """The parts that cannot act in this schedule, one sentence each; arguments as of `inert_by_part`."""
    return list(inert_by_part(recipe, stale=stale, mismatch=mismatch, moved=moved).values())


def inert_by_part(recipe: Recipe, *, stale: bool, mismatch: bool = True, moved: bool | None = None) -> dict[str, str]:
    """The `PARTS` that cannot act in this schedule, each with a sentence that says why.

    Args:
        recipe: the method.
        stale: θ differs from θ_old at some update (N > 1, or a staleness in the simulator).
        mismatch: the two engines differ.
        moved: θ differs from the reference at some update; None where the schedule says it, by more than one update.
    """
    if moved is None:
        moved = recipe.schedule.steps * recipe.schedule.minibatches > 1
    agree: dict[str | None, str] = {
        "theta/old": "" if stale else "theta equals theta_old",
        "old/mu": "" if mismatch else "the engines agree",
        "theta/mu": "" if stale or mismatch else "the engines agree and theta equals theta_old",
        "theta/ref": "" if moved else "theta equals theta_ref",
    }
    why = {name: agree.get(recipe.compared(key)) for name, (key, _) in PARTS.items()}
    if recipe.router_replay.gates == "replayed":
        why["router_replay"] = ""  # constants act wherever they come from: see `notes`
    return {
        name: f"{key} = {_set(recipe, name, key)}: {why[name]}, {result}"
        for name, (key, result) in PARTS.items()
        if why[name]
    }


def _set(recipe: Recipe, part: str, key: str) -> str:
    """What a recipe sets there; of replay its rule too."""
    return str(recipe.router_replay) if part == "router_replay" else str(attrgetter(key)(recipe))


def notes(recipe: Recipe) -> list[str]:
    """What a part of a recipe keeps from acting that is no part of it, one sentence each."""
    if recipe.router_replay.gates != "replayed":
        return []
    return [
        "router_replay.gates = replayed: a gate that is replayed is a constant, so replayed rows give the router no "
        "gradient"
    ]


def receipts(arms: Sequence[Arm], mismatch: bool) -> dict[str, Tensor]:
    """Whether each part of each arm is inert: 1 or 0, `[]` or `[M]`.

    Args:
        arms: the recipes.
        mismatch: whether the two engines differ.
    """
    idle_parts = [inert_by_part(a.recipe, stale=a.recipe.schedule.minibatches > 1, mismatch=mismatch) for a in arms]
    single = arms[0].members is None
    logged = {}
    for part in PARTS:
        flags = [
            float(part in idle) for arm, idle in zip(arms, idle_parts, strict=True) for _ in range(arm.members or 1)
        ]
        logged[f"inert/{part}"] = torch.tensor(flags[0] if single else flags, dtype=torch.float64)
    return logged


def check_strict(idle: Sequence[str], where: str = "") -> None:
    """Refuse what `--strict` refuses: a part that cannot act.

    Args:
        idle: what `inert_parts` says.
        where: in which of several recipes.

    Raises:
        ConfigError: naming every such part.
    """
    if idle:
        raise ConfigError(f"--strict: {where}{'; '.join(idle)}; change the recipe or its schedule, or drop --strict")
