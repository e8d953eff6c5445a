"""The picture of the four claims on orders: how fast each mean error falls with the noise, from tests/records."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

import results

IMAGES = Path(__file__).parent / "images"
PANELS = {"value": "value error", "gradient": "gradient error"}
LINES = {"r3": ("R3", "#3b6fb6"), "flips": ("no replay", "#d1603d")}
JUDGED = {"r3": "order", "flips": "order_where_flips"}  # what the rule of each claim reads
GREY = "#808080"  # is read on white and on black


def data() -> list[dict[str, Any]]:
    """A row for each claim: errors over scales, and the slope that its rule reads."""
    found = {claim["id"]: claim["measured"] for claim in results.record("validate")}
    return [
        {
            "panel": panel,
            "line": line,
            "scale": (numbers := found[f"{line}-{panel}-order"])["scale"],
            "error": numbers["mean_error"],
            "order": numbers[JUDGED[line]],
        }
        for panel in PANELS
        for line in LINES
    ]


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Value on the left, gradient on the right."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (panel, title) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        for row in (row for row in rows if row["panel"] == panel):
            name, colour = LINES[row["line"]]
            order = row["order"]
            label = f"{name}: order {order['value']:.2f} [{order['low']:.2f}, {order['high']:.2f}]"
            axes.loglog(row["scale"], row["error"], "o-", color=colour, label=label)
        axes.set(title=title, xlabel="relative noise of the rollout engine", ylabel="mean over policies and draws")
        axes.grid(color=GREY, alpha=0.3)
        axes.legend()
    return figure


def digest() -> str:
    """Of the rows and of the code that draws them."""
    return hashlib.sha256(json.dumps(data()).encode() + Path(__file__).read_bytes()).hexdigest()


def write() -> None:
    """The picture, with its rows beside."""
    rows = data()
    (IMAGES / "claim-orders.json").write_text(json.dumps(rows, indent=1) + "\n")
    with matplotlib.rc_context({"svg.hashsalt": "orders"}):
        draw(rows).savefig(IMAGES / "claim-orders.svg", metadata={"Date": None, "Description": digest()})
