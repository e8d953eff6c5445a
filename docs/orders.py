"""The picture of the four claims on orders: how fast each mean error falls with the noise, from tests/records."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

import results
from drawn import COLOURS, GREY, Picture

PANELS = {"value": "value error", "gradient": "gradient error"}
LINES = {"r3": ("R3", COLOURS[0]), "flips": ("no replay", COLOURS[1])}
JUDGED = {"r3": "order", "flips": "order_where_flips"}  # what the rule of each claim reads


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


PICTURE = Picture(name="claim-orders", data=data, draw=draw)
