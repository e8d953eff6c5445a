"""Parts of a recipe that cannot act in its schedule: named at the start, and recorded beside what the others did."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import PARTS, inert_by_part
from firstorder.core.quantities import Quantity

from .arms import Arm

QUANTITIES: dict[str, Quantity] = {
    f"inert/{part}": Quantity(
        formula=f"1 where {part} cannot act in this schedule, else 0",
        unit="1",
        source="inert_parts of core.method.recipe",
    )
    for part in PARTS
}


def receipts(arms: Sequence[Arm], mismatch: bool) -> dict[str, Tensor]:
    """Whether each part of each arm is inert: 1 or 0, `[]` or `[M]`.

    Args:
        arms: the recipes.
        mismatch: whether the two engines differ.
    """
    held = [inert_by_part(a.recipe, stale=a.recipe.schedule.minibatches > 1, mismatch=mismatch) for a in arms]
    single = arms[0].members is None
    found = {}
    for part in PARTS:
        flags = [float(part in idle) for arm, idle in zip(arms, held, strict=True) for _ in range(arm.members or 1)]
        found[f"inert/{part}"] = torch.tensor(flags[0] if single else flags, dtype=torch.float64)
    return found


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
