"""Tables over parts of the tokens: by position in the response, turn, weight version and step.

A row has the tokens of a part, how many of them no ratio can be made of, and the engines' disagreement on the others.

Shapes: B responses, L positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from firstorder.core.quantities import Quantity
from firstorder.core.training import backend, diagnostics

from . import cells
from .cells import Cells, Pairs
from .seen import Seen
from .table import Cell, Column, Estimate, Table

TAIL = math.log(2.0)  # of F(2)
TURNS = 8  # first ones that have a row of their own
SHIFT = 1 << 42  # a step and a version are one key; a version may be a time in milliseconds

ABS_LOG_RATIO = Quantity(formula="mean |D|", unit="nats/token", source="firstorder")
AVERAGED: dict[str, Quantity] = {
    "kl": diagnostics.QUANTITIES["kl"],
    "abs_log_ratio": ABS_LOG_RATIO,
    "k3_kl": diagnostics.QUANTITIES["k3_kl"],
    "ratio_tail_2": diagnostics.QUANTITIES["ratio_tail_2"],
    "route/flip_rate": backend.QUANTITIES["route/flip_rate"],
    "route/tokens_flipped": backend.QUANTITIES["route/tokens_flipped"],
}
"""What a row has."""
STALENESS: dict[str, Quantity] = {
    "staleness_mean": Quantity(
        formula="mean over tokens of the newest version in the step's batch less the token's own",
        unit="versions",
        source="firstorder",
    ),
    "staleness_max": Quantity(formula="the largest of them", unit="versions", source="firstorder"),
}
NOTE = "Means over usable tokens, with intervals clustered by response; unusable tokens are counted and in no mean."


def measured(seen: Seen) -> dict[str, Cells]:
    """The cells of a chunk by the name of their table; those of versions are keyed by step and version together."""
    pairs, sampled = token_pairs(seen), seen.chunk.mask
    steps = seen.chunk.steps[:, None].expand_as(sampled)
    by = {
        "position": cells.cells(octave(seen.rank), pairs, sampled),
        "turn": cells.cells(turn_row(seen.turn), pairs, sampled),
        "step": cells.cells(steps, pairs, sampled),
    }
    if seen.chunk.version is not None:
        known = sampled & (seen.chunk.version >= 0)
        by["version"] = cells.cells(steps * SHIFT + seen.chunk.version.clamp(max=SHIFT - 1), pairs, known)
        versions = {"version": (seen.chunk.version.double(), torch.ones_like(sampled, dtype=torch.float64))}
        by["staleness"] = cells.cells(steps, versions, known)
    return by


def merged(a: Mapping[str, Cells], b: Mapping[str, Cells]) -> dict[str, Cells]:
    """The cells of two chunks together."""
    return {**a, **b} | {name: cells.merged(a[name], b[name]) for name in a.keys() & b.keys()}


def tables(by: Mapping[str, Cells]) -> list[Table]:
    """The tables that the dump has columns for."""
    found = [
        _table("by-position", "By position in the response", by["position"], "sampled tokens from the first", doubling),
        _table("by-turn", "By turn", by["turn"], "stretches of sampled tokens from the first", turns),
        _table("by-step", "By step", by["step"], "global step", str),
    ]
    if "version" in by:
        late = relative(by["version"])
        found.append(_table("by-version", "By weight version", late, "versions behind the newest of its step", str))
    return [table for table in found if table.rows]


def token_pairs(seen: Seen) -> Pairs:
    """What every token adds to the means of a row, above and below, `[B, L]` float64."""
    sampled, usable = (x.double() for x in (seen.chunk.mask, seen.usable))
    pairs = {"unusable": (sampled - usable, sampled)}
    if seen.paired:
        d, size = seen.d, seen.d.abs()
        pairs |= {
            "kl": (-d, usable),
            "abs_log_ratio": (size, usable),
            "k3_kl": ((d.clamp(max=diagnostics.WIDE).expm1() - d).clamp(min=0.0), usable),
            "ratio_tail_2": ((size > TAIL).double(), usable),
        }
    if seen.agreement is not None:
        a = seen.agreement
        pairs["route/flip_rate"] = a.share_flipped, a.share_there
        pairs["route/tokens_flipped"] = a.hit.double(), a.known.double()
    return pairs


def octave(rank: Tensor) -> Tensor:
    """The bin of a rank from 1: bin b has the ranks 2^b to 2^(b+1) - 1.

    Example:
        >>> octave(torch.tensor([1, 2, 3, 4, 7, 8])).tolist()
        [0, 1, 1, 2, 2, 3]
    """
    return torch.frexp(rank.double()).exponent.long() - 1


def turn_row(turn: Tensor) -> Tensor:
    """The row of a turn from 1: its own up to `TURNS`, then one for each doubling.

    Example:
        >>> turn_row(torch.tensor([1, 8, 9, 16, 17])).tolist()
        [1, 8, 9, 9, 10]
    """
    return torch.where(turn <= TURNS, turn, TURNS + octave((turn - 1).clamp(min=1)) - octave(torch.tensor(TURNS)) + 1)


def doubling(row: int) -> str:
    """The ranks of a bin of `octave`, for people."""
    first, last = 1 << row, (2 << row) - 1
    return str(first) if first == last else f"{first}-{last}"


def turns(row: int) -> str:
    """The turns of a row of `turn_row`, for people."""
    after = row - TURNS
    return str(row) if after <= 0 else f"{(TURNS << (after - 1)) + 1}-{TURNS << after}"


def relative(versions: Cells) -> Cells:
    """Cells of (step, version) as cells of how far a version is behind the newest of its step."""
    return cells.grouped(versions, _newest(versions) - versions.keys % SHIFT)


def staleness(by: Mapping[str, Cells]) -> dict[str, Estimate | None]:
    """`STALENESS`; nothing where the dump knows no versions."""
    if "version" not in by or not len(by["version"].keys):
        return {}
    behind = _newest(by["version"]) - by["version"].keys % SHIFT
    steps, first = torch.unique_consecutive(by["version"].keys // SHIFT, return_inverse=True)
    newest = torch.zeros(len(steps), dtype=torch.float64).index_copy(0, first, _newest(by["version"]).double())
    responses, n, x, nn, nx, xx = by["staleness"].sums[:, 0].unbind(-1)
    # Σ over responses of what newest n - x makes of every sum
    late = [responses, n, newest * n - x, nn, newest * nn - nx, newest.square() * nn - 2 * newest * nx + xx]
    return {
        "staleness_mean": cells.ratio(torch.stack(late, -1).sum(0)),
        "staleness_max": Estimate(value=float(behind.max())),
    }


def columns(part: str, unit: str, rows: list[dict[str, Cell]]) -> tuple[Column, ...]:
    """Of a table over parts, those that some row has."""
    counts = (
        Column(key="part", title=part, unit=unit),
        Column(key="tokens", title="tokens", formula="sampled tokens"),
        Column(key="unusable", title="unusable", formula="of them, without two log-probs that a ratio can be made of"),
        Column(key="responses", title="responses", formula="that have such tokens"),
    )
    means = tuple(Column(key=key, title=key, unit=q.unit, formula=q.formula) for key, q in AVERAGED.items())
    return tuple(column for column in (*counts, *means) if any(row.get(column.key) is not None for row in rows))


def _table(name: str, title: str, of: Cells, part: str, label: Callable[[int], str]) -> Table:
    rows: list[dict[str, Cell]] = [
        {"part": label(key), "tokens": round(tokens), "unusable": round(lost), "responses": round(responses)}
        for key, tokens, lost, responses in zip(
            of.keys.tolist(),
            of.count("unusable").tolist(),
            of.total("unusable").tolist(),
            of.responses("unusable").tolist(),
            strict=True,
        )
    ]
    for key in AVERAGED:
        for row, value in zip(rows, of.mean(key), strict=True):
            row[key] = value
    return Table(name=name, title=title, columns=columns(part, "", rows), rows=tuple(rows), note=NOTE)


def _newest(versions: Cells) -> Tensor:
    """For each cell the newest version of its step, `[C]`; the keys ascend, so it is the last of the step."""
    steps = versions.keys // SHIFT
    last = torch.searchsorted(steps.contiguous(), steps.contiguous(), right=True) - 1
    return versions.keys[last] % SHIFT
