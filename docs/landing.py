"""The pictures of the first page: a collapse with its one-line cure, and which replay each regime asks for.

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


def collapse() -> dict[str, Any]:
    """J of every seed at every evaluation, by the setting."""
    runs = json.loads((results.RECORDS / "mismatch.json").read_text())["runs"]
    return {
        "updates": [EVERY * place for place in range(len(runs[0]["j"]))],
        "runs": {run["set"]: run["j_of_members"] for run in runs},
    }


def advice() -> list[dict[str, Any]]:
    """The advice in every cell of a part of the map."""
    rows = [row for row in atlas.read().rows() if all(row[key] == value for key, value in SHOWN.items())]
    names = ("kl", "flips", "updates", "advice", "gradient_error_natural")
    return [{key: row[key] for key in names} for row in rows if row["updates"] in UPDATES]


def draw_collapse(found: dict[str, Any]) -> Figure:
    """J over updates: thin the seeds, thick their mean."""
    figure = Figure(figsize=(4.4, 3.3), layout="constrained")
    ax = figure.subplots()
    for place, (setting, runs) in enumerate(found["runs"].items()):
        colour = COLOURS[1 - place]
        for run in runs:
            ax.plot(found["updates"], run, color=colour, alpha=0.35, linewidth=1)
        mean = [sum(each) / len(each) for each in zip(*runs, strict=True)]
        ax.plot(found["updates"], mean, color=colour, linewidth=2.2, marker=MARKERS[place], markersize=4)
        ax.annotate(setting, (9, 0.36 if place == 0 else 0.76), color=colour, weight="bold")
    ax.set(ylim=(0, 1.02), xlabel="updates", ylabel="J, reward")
    ax.set_title("a collapse, and its one-line cure", loc="left")
    return figure


def draw_advice(rows: list[dict[str, Any]]) -> Figure:
    """A map for each N."""
    figure = Figure(figsize=(5.8, 3.3), layout="constrained")
    maps = figure.subplots(1, len(UPDATES), sharey=True)
    for ax, n in zip(maps, UPDATES, strict=True):
        _map(ax, [row for row in rows if row["updates"] == n])
        ax.set_title(TITLES[n], loc="left")
    maps[0].set_ylabel("experts that differ")
    keys = [_key(MARKERS[place], COLOURS[place], label) for place, label in enumerate(("no replay", "R2", "R3"))]
    keys.append(_key("o", GREY, "Qwen3-30B-A3B, FP8", markerfacecolor="none", markersize=12))
    figure.legend(handles=keys, loc="outside lower right", ncols=4, columnspacing=1.0, handletextpad=0.3)
    return figure


def _key(marker: str, colour: str, label: str, **more: Any) -> Line2D:
    return Line2D([], [], linestyle="none", marker=marker, color=colour, label=label, **more)


def _map(ax: Axes, rows: list[dict[str, Any]]) -> None:
    for place, name in enumerate(REPLAYS):
        mine = [row for row in rows if row["advice"].partition(",")[0] == name]
        x, y = ([row[key] for row in mine] for key in ("kl", "flips"))
        ax.scatter(x, y, s=60, color=COLOURS[place], marker=MARKERS[place])
    ax.plot(*ENGINES, "o", color=GREY, markersize=15, markeredgewidth=1.5, markerfacecolor="none")
    ax.set(xscale="log", yscale="log", xlabel="KL, nats a token")
    ax.margins(0.15)


PICTURES = (
    Picture(name="landing-collapse", data=collapse, draw=draw_collapse),
    Picture(name="landing-map", data=advice, draw=draw_advice),
)
