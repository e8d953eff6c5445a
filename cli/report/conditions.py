"""The runs of the training claims: an axes for each condition, a line for each recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from firstorder.core.errors import ConfigError
from firstorder.sim.trials.runs import OFF_POLICY, ON_POLICY

from . import catalogue
from .catalogue import Plot
from .curves import Curve
from .figures import COLUMNS, dress, images, line, name_lines, scale
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


def draw(plot: Plot, conditions: Conditions, curves: Sequence[Curve]) -> dict[str, bytes]:
    """A figure as PNG and SVG, by suffix."""
    return images(lambda: _figure(plot, conditions, curves))


def _figure(plot: Plot, conditions: Conditions, curves: Sequence[Curve]) -> Figure:
    there = [run.recipe for group in conditions.values() for run in group]
    # colours repeat after seven: recipes that share one never meet in a condition
    names = [name for name in dict.fromkeys((*OFF_POLICY, *ON_POLICY, *there)) if name in there]
    rows = -(-len(conditions) // COLUMNS)
    figure = Figure(figsize=(3.6 * COLUMNS, HEIGHT * rows + 0.8), layout="constrained")
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False, sharey=True).flat)
    for ax, (condition, group) in zip(axes, conditions.items(), strict=False):
        for run in group:
            line(ax, [each for each in curves if each.run is run], names.index(run.recipe), len(names))
        dress(ax, condition)
        scale(ax, plot.panels[0].unit, plot.panels, curves)
    for ax in axes[len(conditions) :]:
        ax.remove()
    name_lines(figure, names, 4)
    return figure
