"""The pictures of docs/long.md: the contexts of a problem, responses that walk through them, errors over length."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from drawn import COLOURS, GREY, MARKERS, Picture
from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import build as built
from firstorder.core.settings.toml import read
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim
from firstorder.sim.exact import objectives
from firstorder.sim.exact.fit import compare
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.scene import Scene, build, engines, grow
from firstorder.sim.tasks.chain import Chain
from firstorder.sim.tasks.places import ON, places

PROBLEM: dict[str, Any] = {"world": "graph", "task": "chain", "vocab": 8, "right": 2, "coldstart": "calibrated"}
RECIPES = ("minirl", "minirl-r3", "minirl-no-is", "grpo", "reinforce")
HORIZONS = (8, 32, 128, 512, 2048)
SEEDS = 24


def contexts() -> dict[str, Any]:
    """How many tokens lead from where to where in one problem of four positions, places as [position, on the chain]."""
    sim = Sim(**PROBLEM, prompts=1, positions=4, recovery=1)
    row = torch.tensor([0])
    at, follow = places(sim, row), Chain(sim).contexts(row).follow
    names = [[int(position), bool(mode == ON)] for position, mode in zip(at.position, at.mode, strict=True)]
    leads = [
        {"from": names[here], "to": names[there], "tokens": int((follow[here] == there).sum())}
        for here in range(len(names))
        for there in sorted(set(follow[here].tolist()))
    ]
    return {"vocab": sim.vocab, "positions": sim.positions, "leads": leads}


def paths() -> dict[str, Any]:
    """Three drawn responses, where each stands at every token as [position, on the chain], and what it earns."""
    found = {}
    for recovery, names in ((0, ("never lost", "lost")), (1, ("lost, and back",))):
        sim = Sim(**PROBLEM, prompts=1, horizon=64, recovery=recovery)
        responses, at = scene(sim, [0], ["disabled"]).responses, places(sim, torch.tensor([0]))
        position, on = at.position[responses.contexts[0]], (at.mode == ON)[responses.contexts[0]]
        earned, half = responses.rewards[0] > 0, sim.horizon // 2
        kinds = {
            "never lost": on.all(-1),
            "lost": ~earned & on[:, :half].all(-1),
            "lost, and back": earned & ~on.all(-1),
        }
        for name in names:
            b = int(kinds[name].nonzero()[0, 0])
            found[name] = {"recovery": recovery, "position": position[b].tolist(), "on": on[b].tolist()}
            found[name]["earned"] = float(responses.rewards[0, b])
    return found


def growth(horizons: tuple[int, ...] = HORIZONS) -> dict[str, Any]:
    """gradient_error and value_error of each recipe and horizon, a number for each seed."""
    found: dict[str, Any] = {name: {"gradient_error": {}, "value_error": {}} for name in RECIPES}
    for horizon in horizons:
        one = scene(Sim(**PROBLEM, prompts=2, horizon=horizon), list(range(SEEDS)), ["R3"])
        for name in RECIPES:
            measurement = Measurement(scene=one, recipe=built(Recipe, read(name)))
            gradient = compare(measurement.update, measurement.gradient).error
            value = objectives.values(one, measurement.mode).error.abs()
            found[name]["gradient_error"][str(horizon)] = gradient.tolist()
            found[name]["value_error"][str(horizon)] = value.tolist()
    return found


def scene(sim: Sim, seeds: list[int], modes: list[str]) -> Scene:
    """What `measure` builds for each seed, with all of them side by side."""
    start = starting_weights(sim, torch.tensor(seeds))
    return build(sim, grow(sim), engines(sim, torch.zeros(len(seeds), dtype=torch.long)), start, modes=modes)


def draw_contexts(data: dict[str, Any]) -> Figure:
    """Two rows of contexts, on the chain and off it, and arrows as wide as the tokens that follow them are many."""
    figure = Figure(figsize=(8, 3.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-1.45, data["positions"] + 0.1), ylim=(-0.75, 1.75))
    axes.axis("off")
    for lead in data["leads"]:
        _arrow(axes, lead, data["positions"])
    for on, colour, name in ((1, COLOURS[0], "on the chain"), (0, COLOURS[1], "off the chain")):
        axes.text(-0.35, on, name, ha="right", va="center")
        for q in range(data["positions"]):
            axes.scatter(q, on, s=620, color=colour, zorder=3)
            axes.text(q, on, str(q + 1), color="white", ha="center", va="center", zorder=4)
    last = data["positions"] - 0.45
    axes.text(last, 1.42, "from the last position\nback to the first", ha="center", va="center", fontsize=9)
    return figure


def _arrow(axes: Axes, lead: dict[str, Any], positions: int) -> None:
    (q, on), (_, lands) = lead["from"], lead["to"]
    dashed = lands and not on
    arrow = FancyArrowPatch(
        (q, on),
        (q + 1 if q + 1 < positions else q + 0.75, lands if q + 1 < positions else on + 0.75 * (lands - on)),
        arrowstyle="-|>",
        mutation_scale=13,
        shrinkA=14,
        shrinkB=14 if q + 1 < positions else 0,
        linewidth=0.6 + 0.3 * lead["tokens"],
        linestyle="--" if dashed else "-",
        color=COLOURS[2] if dashed else GREY,
    )
    axes.add_patch(arrow)
    if q == 0:
        x, y = {(1, 1): (0.5, 1.1), (1, 0): (0.29, 0.62), (0, 0): (0.5, -0.2), (0, 1): (0.29, 0.38)}[
            int(on), int(lands)
        ]
        side = "center" if on == lands else "right"
        axes.text(x, y, _tokens(lead["tokens"]), ha=side, va="center", fontsize=9, color=arrow.get_edgecolor())


def _tokens(count: int) -> str:
    return f"{count} token" + "s" * (count > 1)


def draw_paths(data: dict[str, Any]) -> Figure:
    """Position over time, one row a response, coloured by whether it is on the chain."""
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    rows = figure.subplots(len(data), 1, sharex=True)
    for axes, (name, path) in zip(rows, data.items(), strict=True):
        steps = range(1, len(path["on"]) + 1)
        axes.plot(steps, [q + 1 for q in path["position"]], color=GREY, linewidth=0.7)
        for on, colour, marker in ((True, COLOURS[0], "o"), (False, COLOURS[1], "X")):
            here = [(t, q + 1) for t, q, o in zip(steps, path["position"], path["on"], strict=True) if o == on]
            if here:
                axes.scatter(*zip(*here, strict=True), s=22, color=colour, marker=marker, zorder=3)
        axes.set_title(f"{name} (recovery = {path['recovery']}): earns {path['earned']:g}", loc="left", fontsize=10)
        axes.set(ylabel="position", yticks=[1, 4, 8])
    rows[-1].set_xlabel("token of the response (circle: on the chain, cross: off it)")
    return figure


def draw_growth(data: dict[str, Any]) -> Figure:
    """Median over seeds, and the middle half of them."""
    figure = Figure(figsize=(8, 3.9), layout="constrained")
    for axes, (quantity, names) in zip(figure.subplots(1, 2), SHOWN.items(), strict=True):
        for name in names:
            colour, marker = COLOURS[RECIPES.index(name)], MARKERS[RECIPES.index(name)]
            found = data[name][quantity]
            horizons = [int(t) for t in found]
            low, middle, high = np.quantile(list(found.values()), (0.25, 0.5, 0.75), axis=1)
            label = name if quantity == "gradient_error" else VALUE_LABEL[name]
            axes.plot(horizons, middle, color=colour, marker=marker, markersize=5, label=label)
            axes.fill_between(horizons, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set(xlabel="T, tokens", title=quantity, xticks=list(HORIZONS), xticklabels=map(str, HORIZONS))
        axes.minorticks_off()
    figure.axes[1].legend(fontsize=9, loc="lower right")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(RECIPES))
    return figure


SHOWN = {"gradient_error": RECIPES, "value_error": ("minirl", "minirl-r3")}
VALUE_LABEL = {"minirl": "without replay, any recipe", "minirl-r3": "with R3"}
PICTURES = (
    Picture(name="long-contexts", data=contexts, draw=draw_contexts),
    Picture(name="long-paths", data=paths, draw=draw_paths),
    Picture(name="long-growth", data=growth, draw=draw_growth),
)
