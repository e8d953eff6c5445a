"""Figures as commands and results draw them, on the pages that speak of these, with their numbers beside."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure

import firstorder as fo
from drawn import IMAGES

RECIPES = ("minirl", "minirl-r2", "minirl-r3")
QUANTITIES = ("gradient_error_natural", "replay_bias", "value_error", "variance")
MINIBATCH = 3  # counted from 0, of minirl-r3-n4


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A figure that a result draws.

    Args:
        make: the result or results.
        data: the numbers in the figure.
        draw: what the page says draws it.
    """

    make: Callable[[], Any]
    data: Callable[[Any], Any]
    draw: Callable[[Any], Figure]


def _compared() -> list[fo.MeasureResult]:
    return [fo.measure(name, staleness=2, seed=1) for name in RECIPES]


def _numbers(results: list[fo.MeasureResult]) -> dict[str, dict[str, float]]:
    return {
        name: {quantity: getattr(one, quantity) for quantity in QUANTITIES}
        for name, one in zip(RECIPES, results, strict=True)
    }


def _rows(result: fo.MeasureResult) -> list[dict[str, Any]]:
    return [row for row in result.split_records() if row["staleness"] == MINIBATCH]


FIGURES: Mapping[str, Shown] = {
    "measure-recipes": Shown(make=_compared, data=_numbers, draw=lambda found: found[0].plot(*found[1:])),
    "measure-split": Shown(
        make=lambda: fo.measure("minirl-r3-n4", split=True, seed=1),
        data=_rows,
        draw=lambda found: found.plot_split(MINIBATCH),
    ),
}


def write() -> None:
    """All figures and their numbers."""
    for name, shown in FIGURES.items():
        found = shown.make()
        (IMAGES / f"{name}.json").write_text(json.dumps(shown.data(found), indent=1) + "\n")
        with matplotlib.rc_context({"svg.hashsalt": name}):
            shown.draw(found).savefig(IMAGES / f"{name}.svg", metadata={"Date": None})
