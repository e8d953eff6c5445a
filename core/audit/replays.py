"""What Routing Replay would change in a dump that has the routes of both engines.

The log-probs under replay are not in a file, so this is no forecast: it is how many rows R3 would change, and how much
of the engines' disagreement lies on tokens whose own row would. A token without a flip is not safe from replay either:
the experts of its context change as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.core.quantities import Moments, Quantity

from .clustered import Blocks, Clusters, clusters, estimates, of_moments
from .seen import Seen
from .table import Cell, Column, Table

QUANTITIES: dict[str, Quantity] = {
    "rows_changed": Quantity(
        formula="share of rows, prompts included, in which R3 would replace the trainer's experts by others",
        unit="share of (token, layer)",
        source="replay/rows_changed of train",
    ),
    "tokens_changed": Quantity(
        formula="share of sampled tokens made by a row that R3 would change in some layer",
        unit="share of tokens",
        source="route/tokens_flipped",
    ),
    "k3_flipped": Quantity(formula="k3 over those tokens", unit="nats/token", source="k3_kl"),
    "k3_unflipped": Quantity(formula="k3 over the others that have rows", unit="nats/token", source="k3_kl"),
    "k3_share": Quantity(
        formula="share of the sum of k3 that lies on those tokens", unit="share of sum k3", source="firstorder"
    ),
    "k3_excess": Quantity(
        formula="tokens_changed (k3_flipped - k3_unflipped): what k3 would lose if those tokens became as the others",
        unit="nats/token",
        source="firstorder",
    ),
}


def measured(seen: Seen) -> Clusters | None:
    """The sums of a chunk's responses; None without the routes of both engines."""
    found = seen.agreement
    if found is None:
        return None
    layers = found.there.shape[-1]
    moments: Moments = {
        "rows_changed": (found.rows_flipped.sum(-1) * layers, found.rows_there.sum(-1) * layers),
        "tokens_changed": (found.hit.double().sum(-1), found.known.double().sum(-1)),
    }
    if seen.paired:
        k3 = (seen.d.clamp(max=300.0).expm1() - seen.d).clamp(min=0.0)
        parts = {"k3_flipped": found.hit & seen.usable, "k3_unflipped": found.known & ~found.hit & seen.usable}
        moments |= {name: (torch.where(part, k3, 0.0).sum(-1), part.double().sum(-1)) for name, part in parts.items()}
    return clusters(of_moments(moments))


def table(of: Clusters) -> Table:
    """The table."""
    found = estimates(of, _finalise)
    rows: list[dict[str, Cell]] = [
        {
            "quantity": name,
            "value": value,
            "of": round(float(of.sums[name][1])) if name in of.sums else None,
            "unit": QUANTITIES[name].unit,
            "formula": QUANTITIES[name].formula,
        }
        for name, value in found.items()
    ]
    return Table(name="replay", title="What Routing Replay would change", columns=COLUMNS, rows=tuple(rows), note=NOTE)


def _finalise(sums: Blocks) -> dict[str, Tensor]:
    found = {name: pair[0] / pair[1] for name, pair in sums.items() if pair[1] > 0}
    if "k3_flipped" in found and "k3_unflipped" in found:
        flipped, others = sums["k3_flipped"], sums["k3_unflipped"]
        found["k3_share"] = flipped[0] / (flipped[0] + others[0])
        share = flipped[1] / (flipped[1] + others[1])
        found["k3_excess"] = share * (found["k3_flipped"] - found["k3_unflipped"])
    return found


COLUMNS = (
    Column(key="quantity", title="quantity"),
    Column(key="value", title="value [95 %]"),
    Column(key="of", title="of", formula="rows, or tokens, that it is a mean over"),
    Column(key="unit", title="unit"),
    Column(key="formula", title="formula"),
)
NOTE = (
    "The log-probs under replay are not in the file. k3 on flipped tokens is what replay acts on first; it changes the "
    "context of the others as well, and gate weights and arithmetic stay as they are. Where the run replays, k3 is "
    "what is left."
)
