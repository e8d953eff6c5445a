"""How a number is written on a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TINY = 1e-9  # what is smaller is rounding


def estimate(of: Mapping[str, Any]) -> str:
    """A value, with its interval if it has one."""
    if of["low"] is None or of["high"] is None:
        return short(of["value"])
    return f"{short(of['value'])} [{short(of['low'])}, {short(of['high'])}]"


def short(value: float) -> str:
    """Two decimals of a share, two digits of what is smaller, three of what is larger."""
    size = abs(value)
    if size < TINY:
        return "0"
    return f"{value:.2f}" if 0.1 <= size < 1 else f"{value:.3g}" if size >= 1 else f"{value:.2g}"
