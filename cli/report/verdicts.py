"""Claims under their verdicts, as a figure."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from .figures import drawn

COLOURS = {"holds": "tab:green", "reproduced": "tab:green", "fails": "tab:red", "not reproduced": "tab:orange"}
OPEN = "tab:blue"  # of what is inconclusive
WIDTH, LINE = 13.0, 0.26  # inches


def verdicts(claims: Mapping[str, tuple[str, str]]) -> Figure:
    """A line for each claim: its id, a point under its verdict, its headline; given by id as (verdict, headline)."""
    return drawn(lambda: _figure(claims))


def _figure(claims: Mapping[str, tuple[str, str]]) -> Figure:
    columns = list(dict.fromkeys(verdict for verdict, _ in claims.values()))
    figure = Figure(figsize=(WIDTH, LINE * len(claims) + 0.8), layout="constrained")
    ax = figure.subplots()
    for place, (verdict, headline) in enumerate(claims.values()):
        ax.plot(columns.index(verdict), place, "o", color=COLOURS.get(verdict, OPEN))
        ax.annotate(headline, (len(columns) - 0.5, place), va="center", fontsize=8)
    ax.set_yticks(range(len(claims)), list(claims))
    ax.set_xticks(range(len(columns)), columns)
    ax.set(xlim=(-0.5, 2.2 * len(columns) - 0.5), ylim=(len(claims) - 0.5, -0.5))
    ax.tick_params(length=0, labeltop=True, labelbottom=False, labelsize=8)
    return figure
