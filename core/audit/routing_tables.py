"""Tables of the routes: which rows came, how the experts are used, how far two engines agree.

A row is the routing of one token in one layer. Those of the rollout engine are meant, and those of the trainer where a
dump has no others.

Shapes: B responses, L positions, M MoE layers, K experts a token, E experts, R rows that are run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core.quantities import Moments, Quantity
from firstorder.core.training.replay import LAYER, PREFIX, run_rows
from firstorder.core.training.replay import QUANTITIES as REPLAY

from . import cells, strata
from .cells import Cells
from .numbers import QUANTITIES as NUMBERS
from .seen import Seen, over_layers, over_rows, present, same
from .table import Cell, Column, Table

FOUND = ("arrived", "missing", "repeated")


@dataclass(frozen=True, kw_only=True)
class Routed:
    """The sums of the routes of a dump.

    Args:
        layer: cells of each MoE layer.
        position: cells of positions in the sequence, in bins of `strata.octave`.
        use: how often each expert was chosen in rows that are run, int64 `[M, E]`.
    """

    layer: Cells
    position: Cells
    use: Tensor


def measured(seen: Seen) -> tuple[Routed, Moments] | None:
    """The sums of a chunk, and what of them a run logs, by response `[B]`; None without routes."""
    routes = seen.chunk.routes if seen.chunk.routes is not None else seen.chunk.routes_old
    if routes is None:
        return None
    run = run_rows(seen.chunk.lengths, routes.shape[1])
    hits = arrivals(routes, run)
    rows = run.sum(-1).double()[:, None].expand(-1, routes.shape[2])
    by_layer = {name: (over_rows(hit, run), rows) for name, hit in hits.items()}
    moments = _logged(by_layer) if seen.chunk.routes is not None else {}
    found = seen.agreement
    if found is not None:
        there = found.per_response(found.there)
        by_layer["flip_rate"] = found.per_response(found.flipped), there
        by_layer["jaccard"] = found.per_response(found.overlap), there
        moments |= {f"route/flip_rate{LAYER}{i}": (x, n) for i, (x, n) in enumerate(_columns(by_layer["flip_rate"]))}
    return Routed(layer=_by_layer(by_layer), position=_by_position(seen, hits, run), use=use(routes, run)), moments


def merged(a: Routed, b: Routed) -> Routed:
    """The routes of two chunks together."""
    sizes = [max(x, y) for x, y in zip(a.use.shape, b.use.shape, strict=True)]
    total = a.use.new_zeros(sizes)
    for each in (a.use, b.use):
        total[: each.shape[0], : each.shape[1]] += each
    return Routed(layer=cells.merged(a.layer, b.layer), position=cells.merged(a.position, b.position), use=total)


def arrivals(routes: Tensor, run: Tensor) -> dict[str, Tensor]:
    """Which rows came, are missing, or repeat a neighbour as fills do, bool `[B, L, M]` each, as `replay.arrivals`."""
    there, on = present(routes), run[..., None]
    like = torch.zeros_like(there)
    like[:, 1:] = same(routes[:, 1:], routes[:, :-1])
    if routes.shape[2] > 1:
        like |= over_layers(same(routes, routes[:, :, :1]))[..., None] == 1
    there &= on
    return {"arrived": there, "missing": on & ~there, "repeated": like & there}


def use(routes: Tensor, run: Tensor) -> Tensor:
    """How often each expert stands in the rows that are run, int64 `[M, E]`; ids below 0 are none."""
    size = int(routes.max()) + 2
    return (_counts(routes, size) - _counts(routes[~run], size))[:, 1:]


def _counts(rows: Tensor, size: int) -> Tensor:
    """How often each id from -1 on stands in rows `[..., M, K]`, int64 `[M, size]`."""
    layers = rows.shape[-2]
    kind = torch.int16 if layers * size <= torch.iinfo(torch.int16).max else torch.int32
    first = torch.arange(layers, dtype=kind)[:, None] * size + 1
    key = rows.to(kind).clamp(min=-1) + first if rows.numel() and int(rows.min()) < -1 else rows.to(kind) + first
    return torch.bincount(key.flatten(), minlength=layers * size).reshape(layers, size)


def tables(of: Routed) -> list[Table]:
    """By layer and by position."""
    load = _load(of.use)
    layers = [
        {"layer": key, **row, **load[key]} for key, row in zip(of.layer.keys.tolist(), _shares(of.layer), strict=True)
    ]
    places = [
        {"part": strata.doubling(key), **row}
        for key, row in zip(of.position.keys.tolist(), _shares(of.position), strict=True)
    ]
    return [
        Table(
            name="routes-by-layer",
            title="Routes by MoE layer",
            columns=_heads(Column(key="layer", title="MoE layer", formula="from 0"), layers),
            rows=tuple(layers),
            note="Rows that an engine runs: all but that of a response's last token. Flips are of the rows that made "
            "sampled tokens.",
        ),
        Table(
            name="routes-by-position",
            title="Routes by position in the sequence",
            columns=_heads(Column(key="part", title="tokens from the first", formula="prompt included"), places),
            rows=tuple(places),
            note="Rows that an engine runs, prompts included, all layers together; a token's row makes the next token.",
        ),
    ]


def _by_layer(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Cells:
    x, n = (torch.stack([pair[i] for pair in pairs.values()], -1) for i in range(2))
    return cells.dense(torch.arange(x.shape[1]), tuple(pairs), n, x)


def _by_position(seen: Seen, hits: Mapping[str, Tensor], run: Tensor) -> Cells:
    key = strata.octave(torch.arange(run.shape[-1]) + 1).expand_as(run)
    pairs = {name: (over_layers(hit), run.double()) for name, hit in hits.items()}
    found = seen.agreement
    if found is not None:
        pairs["flip_rate"] = found.rows_flipped, found.rows_there
        pairs["jaccard"] = found.rows_overlap, found.rows_there
    return cells.cells(key, pairs, run)


def _logged(by_layer: Mapping[str, tuple[Tensor, Tensor]]) -> Moments:
    """As `replay.arrivals` names them, over all layers and for each."""
    moments: Moments = {}
    for name, pair in by_layer.items():
        moments[f"{PREFIX}routes_{name}"] = pair[0].sum(-1), pair[1].sum(-1)
        moments |= {f"{PREFIX}routes_{name}{LAYER}{i}": each for i, each in enumerate(_columns(pair))}
    return moments


def _columns(pair: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(pair[0].unbind(-1), pair[1].unbind(-1), strict=True))


def _load(counts: Tensor) -> list[dict[str, Cell]]:
    """Entropy of the use of experts, how many are used, and the share of the most used, by layer."""
    share = counts.double() / counts.sum(-1, keepdim=True).clamp(min=1)
    entropy = -torch.special.xlogy(share, share).sum(-1)
    return [
        {"load_entropy": float(h), "load_top": float(top), "experts_used": int(seen)}
        for h, top, seen in zip(entropy, share.amax(-1), (counts > 0).sum(-1), strict=True)
    ]


def _shares(of: Cells) -> list[dict[str, Cell]]:
    rows: list[dict[str, Cell]] = [
        {"rows": round(count), "responses": round(responses)}
        for count, responses in zip(of.count("arrived").tolist(), of.responses("arrived").tolist(), strict=True)
    ]
    for name in (*FOUND, "flip_rate", "jaccard"):
        for row, value in zip(rows, of.mean(name), strict=True):
            row[name] = value
    return rows


QUANTITIES: dict[str, Quantity] = {name: REPLAY[f"{PREFIX}routes_{name}"] for name in FOUND} | {
    "flip_rate": strata.AVERAGED["route/flip_rate"],
    "jaccard": NUMBERS["route/jaccard"],
    "load_entropy": Quantity(
        formula="-sum_e f_e log f_e, f_e the share of choices of expert e", unit="nats", source="firstorder"
    ),
    "load_top": Quantity(
        formula="share of choices of the most used expert", unit="share of choices", source="firstorder"
    ),
    "experts_used": Quantity(formula="experts chosen at least once", unit="experts", source="firstorder"),
}


def _heads(first: Column, rows: list[dict[str, Cell]]) -> tuple[Column, ...]:
    counts = (first, Column(key="rows", title="rows"), Column(key="responses", title="responses"))
    means = tuple(Column(key=key, title=key, unit=q.unit, formula=q.formula) for key, q in QUANTITIES.items())
    return tuple(column for column in (*counts, *means) if any(row.get(column.key) is not None for row in rows))
