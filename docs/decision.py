"""The page of a run that collapsed: its table of symptoms, and the picture that leads from one to the others.

Both are made from the list of the package, in which every step names what backs it.
"""

from __future__ import annotations

from dataclasses import asdict
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

import tables
from drawn import COLOURS, Picture
from firstorder.cli.report.remedies import SYMPTOMS, Symptom


def table() -> str:
    """Every symptom, what to look at, and where that leads."""
    return tables.rows(
        ("seen; look at", "they say", "cause", "remedy", "backed by; shown by"),
        (cells for symptom in SYMPTOMS for cells in _cells(symptom)),
    )


def _cells(symptom: Symptom) -> list[list[str]]:
    first = f"**{symptom.seen}**; " + ", ".join(f"`{name}`" for name in symptom.numbers)
    return [
        [first if i == 0 else "", one.reading, one.cause, _code(one.remedy), f"{_links(one.evidence)}; `{one.command}`"]
        for i, one in enumerate(symptom.branches)
    ]


def _code(remedy: str) -> str:
    """A setting in code, words as they are."""
    return f"`{remedy}`" if "=" in remedy else remedy


def _links(evidence: tuple[str, ...]) -> str:
    return ", ".join(f"[`{name.split()[1]}`]({_anchor(*name.split())})" for name in evidence)


def _anchor(kind: str, name: str) -> str:
    if kind == "study":
        return f"studies.md#{name}" if name == "regimes" else f"#{name}"
    return f"claims/{name}.md"


def data() -> list[dict[str, Any]]:
    """What the picture is drawn from."""
    return [asdict(symptom) for symptom in SYMPTOMS]


def draw(symptoms: list[dict[str, Any]]) -> Figure:
    """From what is seen, on the left, by what the numbers say to the cause and its remedy."""
    count = sum(len(symptom["branches"]) for symptom in symptoms)
    figure = Figure(figsize=(10, 0.62 * count + 0.5))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 10), ylim=(-count - 0.1, 0.7))
    axes.axis("off")
    for x, head in ((1.15, "seen"), (4.3, "the numbers say"), (7.0, "cause"), (9.1, "remedy")):
        axes.text(x, 0.35, head, ha="center", va="center", fontsize=10, weight="bold")
    top = 0
    for i, symptom in enumerate(symptoms):
        rows = [-(top + k + 0.5) for k in range(len(symptom["branches"]))]
        _symptom(axes, symptom, sum(rows) / len(rows), rows, COLOURS[i % len(COLOURS)])
        top += len(rows)
    return figure


def _symptom(axes: Axes, symptom: dict[str, Any], middle: float, rows: list[float], colour: str) -> None:
    _box(axes, 0.1, 2.1, middle, fill(symptom["seen"], 24), colour)
    for y, branch in zip(rows, symptom["branches"], strict=True):
        axes.annotate("", (3.05, y), (2.25, middle), arrowprops={"arrowstyle": "-|>", "color": colour})
        axes.text(3.1, y, fill(branch["reading"], 38), ha="left", va="center", fontsize=8.5)
        axes.annotate("", (5.95, y), (5.6, y), arrowprops={"arrowstyle": "-|>", "color": colour})
        axes.text(6.0, y, fill(branch["cause"], 28), ha="left", va="center", fontsize=8.5)
        axes.annotate("", (8.15, y), (7.9, y), arrowprops={"arrowstyle": "-|>", "color": colour})
        axes.text(
            8.2,
            y,
            fill(branch["remedy"], 27, break_long_words=False),
            ha="left",
            va="center",
            fontsize=8.5,
            weight="bold",
        )


def _box(axes: Axes, left: float, width: float, y: float, words: str, colour: str) -> None:
    box = FancyBboxPatch((left, y - 0.42), width, 0.84, boxstyle="round,pad=0.02", facecolor="none", edgecolor=colour)
    axes.add_patch(box)
    axes.text(left + width / 2, y, words, ha="center", va="center", fontsize=9, weight="bold")


PICTURE = Picture(name="collapse-decision", data=data, draw=draw)
