"""Parts of a study that are computed once and found again, one JSON file each in its folder; and numbers of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstorder.core import progress
from firstorder.core.runs.files import to_json, write_whole

Part = Callable[[], dict[str, Any]]


def kept(folder: Path, parts: Mapping[str, Part]) -> dict[str, dict[str, Any]]:
    """Every part by its name, which is that of its file; what an earlier call has left is read.

    Args:
        folder: of the study.
        parts: what computes each, as plain numbers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return {name: _one(folder / f"{name}.json", parts[name]) for name in progress.steps("parts", list(parts))}


def _one(place: Path, part: Part) -> dict[str, Any]:
    if not place.is_file():
        write_whole(place, to_json(part(), indent=None))
    found: dict[str, Any] = json.loads(place.read_text())
    return found


def over(parts: Sequence[Mapping[str, Any]], *keys: str) -> Tensor:
    """A number of every part, `[S]`, by the keys that lead to it; null is infinite."""
    found = []
    for each in parts:
        value: Any = each
        for key in keys:
            value = value[key]
        found.append(math.inf if value is None else value)
    return torch.tensor(found, dtype=torch.float64)


def median(values: Tensor) -> float | None:
    """The middle of sorted values, the mean of two; None where it is infinite."""
    ordered, size = values.sort().values, len(values)
    middle = float(ordered[(size - 1) // 2 : size // 2 + 1].mean())
    return middle if math.isfinite(middle) else None
