"""The picture of the first page: a collapse with its one-line cure, and which replay each regime asks for.

The data are those of two records: the runs of docs/examples/mismatch.toml, and the map of `firstorder recommend`.
"""

from __future__ import annotations

import json
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import results
from drawn import COLOURS, GREY, MARKERS, Picture
from firstorder.sim.trials import atlas

EVERY = 4  # updates between two evaluations of docs/examples/mismatch.toml
SHOWN: dict[str, Any] = {"horizon": 8192, "right": 2, "step": 1e-4}  # the part of the map on docs/recommend.md
UPDATES = (1, 4)
ENGINES = (1.5e-3, 0.10)  # KL and flips of Qwen3-30B-A3B with FP8 rollouts, arXiv 2510.11370
TITLES = {1: "N = 1, a batch is used once", 4: "N = 4 updates a batch"}
REPLAYS = ("none", "R2", "R3")


def data() -> dict[str, Any]:
    """J of every seed at every evaluation, and the advice in every cell of a part of the map."""
    runs = json.loads((results.RECORDS / "mismatch.json").read_text())["runs"]
    rows = [row for row in atlas.read().rows() if all(row[key] == value for key, value in SHOWN.items())]
    return {
        "updates": [EVERY * place for place in range(len(runs[0]["j"]))],
        "runs": {run["set"]: run["j_of_members"] for run in runs},
        "map": [
            {key: row[key] for key in ("kl", "flips", "updates", "advice", "gradient_error_natural")}
            for row in rows
            if row["updates"] in UPDATES
        ],
    }


def draw(found: dict[str, Any]) -> Figure:
    """J over updates on the left, a map for each N beside."""
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    left, *maps = figure.subplots(1, 1 + len(UPDATES), width_ratios=(1.25, 1, 1))
    _collapse(left, found)
    for ax, n in zip(maps, UPDATES, strict=True):
        _map(ax, [row for row in found["map"] if row["updates"] == n])
        ax.set_title(TITLES[n], loc="left")
    maps[0].set_ylabel("experts that differ")
    maps[0].sharey(maps[1])
    keys = [_key(MARKERS[place], COLOURS[place], label) for place, label in enumerate(("no replay", "R2", "R3"))]
    keys.append(_key("o", GREY, "Qwen3-30B-A3B, FP8", markerfacecolor="none", markersize=12))
    figure.legend(handles=keys, loc="outside lower right", ncols=4)
    return figure


def _key(marker: str, colour: str, label: str, **more: Any) -> Line2D:
    return Line2D([], [], linestyle="none", marker=marker, color=colour, label=label, **more)


def _collapse(ax: Axes, found: dict[str, Any]) -> None:
    for place, (setting, runs) in enumerate(found["runs"].items()):
        colour = COLOURS[1 - place]
        for run in runs:
            ax.plot(found["updates"], run, color=colour, alpha=0.35, linewidth=1)
        mean = [sum(each) / len(each) for each in zip(*runs, strict=True)]
        ax.plot(found["updates"], mean, color=colour, linewidth=2.2, marker=MARKERS[place], markersize=4)
        ax.annotate(setting, (9, 0.36 if place == 0 else 0.76), color=colour, weight="bold")
    ax.set(ylim=(0, 1.02), xlabel="updates", ylabel="J, reward")
    ax.set_title("a collapse, and its one-line cure", loc="left")


def _map(ax: Axes, rows: list[dict[str, Any]]) -> None:
    for place, name in enumerate(REPLAYS):
        mine = [row for row in rows if row["advice"].partition(",")[0] == name]
        x, y = ([row[key] for row in mine] for key in ("kl", "flips"))
        ax.scatter(x, y, s=60, color=COLOURS[place], marker=MARKERS[place])
    ax.plot(*ENGINES, "o", color=GREY, markersize=15, markeredgewidth=1.5, markerfacecolor="none")
    ax.set(xscale="log", yscale="log", xlabel="KL of the engines, nats a token")
    ax.margins(0.15)


PICTURE = Picture(name="landing", data=data, draw=draw)
