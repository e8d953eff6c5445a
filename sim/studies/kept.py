"""Parts of a study that are computed once and found again: one JSON file each in its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
