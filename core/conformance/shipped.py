"""The golden vectors of the package, read without making them."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def source() -> str:
    """The vectors as they are written, JSON."""
    return (resources.files("firstorder.core.conformance") / "vectors.json").read_text(encoding="utf-8")


def shipped() -> dict[str, Any]:
    """The vectors, with infinities as texts."""
    tree: dict[str, Any] = json.loads(source())
    return tree
