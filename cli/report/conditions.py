"""The runs of the training claims: an axes for each condition, a line for each recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from firstorder.core.errors import ConfigError
from firstorder.sim.trials.runs import OFF_POLICY, ON_POLICY

from . import catalogue
from .catalogue import Plot
from .claimed import Settled
from .curves import Curve
from .figures import across, arranged, dress, images, line, name_lines, scale
from .panels import ALONE, PHONE_WIDTH, WIDTH
from .runs import Run, read_run

CLAIMS = "claims.toml"  # in the folder of `validate --training --out`
SHOWN = (
    "exact/j_pi",
    "exact/j_mu",
    "kl",
    "update/entropy",
    "route/flip_rate",
    "exact/gradient_error_natural",
    "exact/bias_coherence",
)
HEIGHT = 2.1  # inches of an axes

Conditions = Mapping[str, Sequence[Run]]


def is_claims(folder: Path) -> bool:
    """Whether a folder holds the runs of training claims."""
    return (folder / CLAIMS).is_file()


def read_conditions(folder: Path) -> dict[str, list[Run]]:
    """The finished runs by condition, each under its recipe's name.

    Raises:
        ConfigError: nothing has finished yet.
    """
    conditions: dict[str, list[Run]] = {}
    for path in sorted((folder / "cells").glob("*")):
        run = read_run(path, path.name)
        condition = path.name.removesuffix(f"-{run.recipe}")
        conditions.setdefault(condition, []).append(run)
    if not conditions:
        raise ConfigError(f"{folder} holds no finished run yet; give it to validate --training --out again")
    return conditions


def plots(conditions: Conditions) -> list[Plot]:
    """One figure a quantity, of those that tell the runs apart."""
    runs = [run for group in conditions.values() for run in group]
    panels = {panel.key: panel for plot in catalogue.plots(runs) for panel in plot.panels}
    return [
        Plot(name=key.replace("/", "-"), title=panels[key].title, panels=(panels[key],), shared=True)
        for key in SHOWN
        if key in panels
    ]


def draw(
    plot: Plot, conditions: Conditions, curves: Sequence[Curve], titles: Mapping[str, str] | None = None
) -> dict[str, bytes]:
    """A figure as PNG and SVG, by suffix, and as SVG for a phone; `titles` of axes are the conditions unless given."""
    named = {condition: (titles or {}).get(condition, condition) for condition in conditions}
    whole = images(lambda: _figure(plot, conditions, curves, named))
    return whole | {"phone": images(lambda: _figure(plot, conditions, curves, named, phone=True), ("svg",))["svg"]}


def of_claim(claim: Settled, conditions: Conditions) -> dict[str, list[Run]]:
    """The runs on which a claim was settled condition by condition."""
    return {
        condition: [run for run in group if run.recipe in claim.conditions[condition][1]]
        for condition, group in conditions.items()
        if condition in claim.conditions
    }


def _figure(
    plot: Plot, conditions: Conditions, curves: Sequence[Curve], titles: Mapping[str, str], phone: bool = False
) -> Figure:
    there = [run.recipe for group in conditions.values() for run in group]
    # colours repeat after seven: recipes that share one never meet in a condition
    names = [name for name in dict.fromkeys((*OFF_POLICY, *ON_POLICY, *there)) if name in there]
    columns, rows = (1, len(conditions)) if phone else arranged(len(conditions))
    width = PHONE_WIDTH if phone else max(ALONE, WIDTH * columns)
    fits = across(names, width)
    size = width, HEIGHT * rows + 0.2 * math.ceil(len(names) / fits) + 0.4
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for ax, (condition, group) in zip(axes, conditions.items(), strict=False):
        for run in group:
            mine = [each for each in curves if each.run is run]
            line(ax, mine, names.index(run.recipe), len(names))
        dress(ax, titles[condition])
        scale(ax, plot.panels[0].unit, plot.panels, curves)
    for ax in axes[len(conditions) :]:
        ax.remove()
    name_lines(figure, names, fits)
    return figure
