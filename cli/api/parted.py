"""What `measure --split` shows: the parts of what is off, as tables, rows and a figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .results import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table
    from rich.text import Text

    from firstorder.sim.exact.split import Part, Split, Splits

UNITS = {
    "gradient": "share of ‖g‖",
    "value": "reward",
    "error": "reward",
    "kl": "nats/token",
}
"""What is split, in the order of the table, each with its unit."""
MEANT = {
    "numerics": "the arithmetic of mu",
    "gates": "its gate weights, on the same experts",
    "flips": "its experts",
    "staleness": "theta is not theta_old",
    "target": "the replayed target is not the natural one",
    "method": "what the method does where all policies are one",
}


def rows(splits: Sequence[Splits]) -> list[dict[str, Any]]:
    """A row for each part of each thing that is split, at each minibatch."""
    return [
        {"staleness": each.staleness, "quantity": quantity, "part": name, **vars(part)}
        for each in splits
        for quantity in UNITS
        for name, part in parts(each, quantity).items()
    ]


def parts(splits: Splits, quantity: str) -> Mapping[str, Part]:
    """The parts of one thing that is split; none where it is not formed."""
    found = getattr(splits, quantity)
    return {} if found is None else found.parts


def at(splits: Sequence[Splits] | None, staleness: int) -> Splits:
    """The splits at one minibatch.

    Raises:
        ConfigError: nothing was split there.
    """
    from firstorder.core.errors import ConfigError

    there = {each.staleness: each for each in splits or ()}
    if staleness not in there:
        found = ", ".join(map(str, there)) or "none"
        raise ConfigError(f"there is no split at staleness {staleness}, only at {found}; measure with split=True")
    return there[staleness]


def blocks(splits: Sequence[Splits], staleness: int) -> Iterator[Table | Text]:
    """All parts at one minibatch, then, if there are more, the size of each part of the update at every one."""
    from rich.text import Text

    yield _whole(at(splits, staleness))
    yield Text("; ".join(f"{name}: {meaning}" for name, meaning in (UNITS | MEANT).items()), style="dim")
    if len(splits) > 1:
        yield _course(splits)


def _whole(splits: Splits) -> Table:
    from rich.table import Table

    about = f"split at staleness {splits.staleness}, in this order and over all"
    table = Table(title=about, title_justify="left", box=None, header_style="bold")
    table.add_column("of")
    table.add_column("part")
    for name in ("value", "Shapley", "least", "most", "‖part‖/‖g‖"):
        table.add_column(name, justify="right")
    for quantity in UNITS:
        whole: Split | None = getattr(splits, quantity)
        if whole is None:
            table.add_row(quantity, "not formed", *[""] * 5)
            continue
        for name, part in whole.parts.items():
            ends = (part.value, part.shapley, part.low, part.high)
            table.add_row(quantity, name, *(f"{x:.3g}" for x in ends), _size(part.norm))
        total = f"{whole.total:.3g}"
        table.add_row(quantity, "in all", total, total, "", "", _size(whole.norm))
    return table


def _size(norm: float | None) -> str:
    return "" if norm is None else f"{norm:.3g}"


def _course(splits: Sequence[Splits]) -> Table:
    from rich.table import Table

    about = "‖part of the update‖ / ‖g‖ at each minibatch"
    table = Table(title=about, title_justify="left", box=None, header_style="bold")
    for name in ("staleness", *MEANT, "in all"):
        table.add_column(name, justify="right")
    for each in splits:
        if each.gradient is not None:
            sizes = [part.norm for part in each.gradient.parts.values()]
            table.add_row(str(each.staleness), *(f"{size:.3g}" for size in (*sizes, each.gradient.norm)))
    return table


def figure(splits: Splits) -> Figure:
    """A bar for each part at one minibatch, with its least and most over all orders; of the gradient also its size."""
    require_matplotlib()
    from firstorder.cli.report.bars import Bar, bars

    panels = {
        f"{quantity} [{unit}]": [
            Bar(label=name, value=part.value, low=part.low, high=part.high)
            for name, part in parts(splits, quantity).items()
        ]
        for quantity, unit in UNITS.items()
    }
    sizes = [Bar(label=name, value=part.norm) for name, part in parts(splits, "gradient").items()]
    shown = {"gradient [‖part‖ / ‖g‖]": sizes} | {title: panel for title, panel in panels.items() if panel}
    return bars({title: panel for title, panel in shown.items() if panel})
