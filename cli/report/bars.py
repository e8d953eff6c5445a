"""A few numbers side by side: an axes for each quantity, a bar for each result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figures import COLOURS, arranged, drawn

WIDTH, HEIGHT = 4.2, 0.32  # inches of an axes, and of a line of its label
LETTERS = 0.34  # of an axis, for a number


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A number with its interval, if it was sampled; without a value it is not formed."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None


def bars(panels: Mapping[str, Sequence[Bar]]) -> Figure:
    """An axes for each title."""
    return drawn(lambda: _figure(panels))


def _figure(panels: Mapping[str, Sequence[Bar]]) -> Figure:
    columns, rows = arranged(len(panels))
    lines = sum(bar.label.count("\n") + 2 for bar in next(iter(panels.values())))
    figure = Figure(figsize=(WIDTH * columns, rows * (HEIGHT * lines / 2 + 0.7)), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax, (title, shown) in zip(axes, panels.items(), strict=False):
        ax.set_title(title, loc="left")
        for place, bar in enumerate(shown):
            _draw(ax, place, bar)
        ax.axvline(0, color="0.4", linewidth=0.8)
        ax.set_yticks(range(len(shown)), [bar.label for bar in shown])
        ax.set(ylim=(len(shown) - 0.5, -0.5), xlim=_room(shown))
        ax.set_axisbelow(True)
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
    for ax in axes[len(panels) :]:
        ax.remove()
    return figure


def _draw(ax: Axes, place: int, bar: Bar) -> None:
    """A bar, its interval, and beyond both its number."""
    low, high = _ends(bar)
    ax.barh(place, bar.value or 0.0, 0.6, color=COLOURS[place % len(COLOURS)])
    if bar.low is not None:
        ax.plot([low, high], [place, place], color="0.1", linewidth=2, solid_capstyle="butt")
    left = (bar.value or 0.0) < 0
    ax.annotate(
        "not formed" if bar.value is None else f"{bar.value:.3g}",
        (low if left else high, place),
        xytext=(-4 if left else 4, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        fontsize=8,
        color="0.2",
    )


def _ends(bar: Bar) -> tuple[float, float]:
    value = bar.value or 0.0
    return (value if bar.low is None else bar.low), (value if bar.high is None else bar.high)


def _room(shown: Sequence[Bar]) -> tuple[float, float]:
    """The ends of an axis that holds every bar, every interval and, at its end, every number."""
    ends = [end for bar in shown for end in _ends(bar)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    letters = LETTERS * ((high - low) or 1.0)
    left = any((bar.value or 0.0) < 0 for bar in shown)
    right = any((bar.value or 0.0) >= 0 for bar in shown)
    return low - (letters if left else 0.0), high + (letters if right else 0.0)
