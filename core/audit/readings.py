"""What others have read of k3, KL and mean |D|, and the levels at which they alarm, beside what a dump shows.

For comparison only: none of them names the entropy or the length that it was read at, and no rule of an audit uses
them.
"""

from __future__ import annotations

from dataclasses import dataclass

from .size import Size
from .table import Cell, Column, Table

R3 = "arXiv 2510.11370"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A published number.

    Args:
        what: model, engines and precision, as far as they are said.
        quantity: `kl` mean(-D), `k3` mean(exp D - D - 1), `mean |D|`, all nats a token; `mean exp |D|` and `F(2)`.
        value: as printed, or the range.
        source: who.
    """

    what: str
    quantity: str
    value: str
    source: str


READINGS = (
    Reading(what="Qwen3-30B-A3B, routes live", quantity="kl", value="1.5e-3", source=R3),
    Reading(what="Qwen3-30B-A3B, routes replayed", quantity="kl", value="7.5e-4", source=R3),
    Reading(what="a dense model of 8B", quantity="kl", value="6.4e-4", source=R3),
    Reading(what="one engine twice", quantity="kl", value="8.4e-4", source=R3),
    Reading(what="DeepSeek-V4-Flash, routes live", quantity="k3", value="6.5e-4 to 1.1e-3", source="prime-rl#3543"),
    Reading(what="DeepSeek-V4-Flash, replayed", quantity="k3", value="2.5e-4 to 4.0e-4", source="prime-rl#3543"),
    Reading(what="routes live", quantity="mean |D|", value="0.369", source="miles#2722"),
    Reading(what="expert ids replayed, other gates", quantity="mean |D|", value="0.139", source="miles#2722"),
)
LEVELS = (
    Reading(what="alarm", quantity="kl", value="0.01", source="Tinker cookbook"),
    Reading(what="alarm, mean of 20 steps", quantity="k3", value="0.015", source="prime-rl"),
    Reading(what="alarm", quantity="kl", value="0.1", source="verl"),
    Reading(what="alarm", quantity="mean exp |D|", value="1.05", source="NeMo-RL"),
    Reading(what="alarm", quantity="F(2)", value="0.1", source=R3),
)


def compared_with(found: Size) -> Table:
    """The size of a dump above what others have read, each with its source."""
    own = [
        Reading(what="this dump", quantity="k3", value=f"{found.k3:.1e}", source=""),
        Reading(what="this dump", quantity="mean |D|", value=f"{found.mean_abs:.3g}", source=""),
    ]
    rows: list[dict[str, Cell]] = [dict(vars(each)) for each in (*own, *READINGS, *LEVELS)]
    return Table(
        name="readings",
        title="What others have read",
        columns=(
            Column(key="what", title="Of what"),
            Column(key="quantity", title="Quantity", unit="nats a token"),
            Column(key="value", title="Value"),
            Column(key="source", title="Source"),
        ),
        rows=tuple(rows),
        note="None of them names the entropy and the length that it was read at; they decide nothing here.",
    )
