"""Faults put into good routes.

Shapes: L positions of a sample, M MoE layers, K experts a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from firstorder.core.formats.sample import Sample

from .injecting import Fault, Inject, column, each, shift, some

Change = Callable[[Tensor, Sample, torch.Generator], Tensor]


def ran(sample: Sample) -> Tensor:
    """Positions whose rows are real: all but the last, bool `[L]`."""
    return torch.arange(len(sample.tokens)) < len(sample.tokens) - 1


def rows(change: Change, share: float = 1.0, side: str = "routes") -> Inject:
    """A change of the rows that ran; that of the last token stays -1."""

    def changed(x: Tensor, sample: Sample, g: torch.Generator) -> Tensor:
        return torch.where(ran(sample)[:, None, None], change(x, sample, g), -1).to(x.dtype)

    return column(side, changed, share)


def filled(x: Tensor, where: Tensor, value: Tensor | int) -> Tensor:
    """Rows replaced, `[L, M, K]`, at bool `[L]`."""
    return torch.where(where[:, None, None], torch.as_tensor(value, dtype=x.dtype), x)


def _prefix(x: Tensor) -> Tensor:
    """The first quarter, of one row at least."""
    return torch.arange(len(x)) < max(1, len(x) // 4)


def _count(x: Tensor) -> Tensor:
    """Ids that count up through layers and experts, modulo the experts seen."""
    return (torch.arange(x.shape[1] * x.shape[2]) % (int(x.max()) + 1)).reshape(x.shape[1:]).to(x.dtype)


def _end(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The last row that ran replaced."""
    out = x.clone()
    if len(x) > 2:
        out[-2] = change(x)
    return out


def _block(x: Tensor, sample: Sample, g: torch.Generator) -> Tensor:
    """The first of every sixteen rows in place of all."""
    return x[torch.arange(len(x)) // 16 * 16]


def _twice(x: Tensor, sample: Sample, g: torch.Generator, share: float) -> Tensor:
    if x.shape[-1] < 2:
        return x
    hit = (torch.rand(x.shape[:2], generator=g) < share) & ran(sample)[:, None]
    if not hit.any():
        hit[0, 0] = True
    out = x.clone()
    out[..., -1] = torch.where(hit, x[..., 0], x[..., -1])
    return out


def relabelled(samples: list[Sample], g: torch.Generator) -> list[Sample]:
    """Ids of each layer permuted, the same way in all responses."""
    routed = [s.routes for s in samples if s.routes is not None]
    experts = max(int(x.max()) for x in routed) + 1
    maps = torch.rand(routed[0].shape[1], experts, generator=g).argsort(-1)

    def moved(x: Tensor) -> Tensor:
        named = maps.gather(1, x.clamp(min=0).long().movedim(1, 0).flatten(1)).reshape(x.shape[1], len(x), -1)
        dense = (x == 0).all(-1, keepdim=True) & (x.shape[-1] > 1)
        return torch.where((x >= 0) & ~dense, named.movedim(0, 1), x).to(x.dtype)

    return [s if s.routes is None else replace(s, routes=moved(s.routes)) for s in samples]


def of_next(samples: list[Sample], g: torch.Generator) -> list[Sample]:
    """Routes of the next response; -1 where that one is shorter."""

    def cut(x: Tensor | None, length: int) -> Tensor | None:
        if x is None:
            return None
        out = torch.full((length, *x.shape[1:]), -1, dtype=x.dtype)
        n = min(length, len(x)) - 1
        out[:n] = x[:n]
        return out

    return [
        replace(a, routes=cut(b.routes, len(a.tokens))) for a, b in zip(samples, samples[1:] + samples[:1], strict=True)
    ]


def _stale_prefix(samples: list[Sample], g: torch.Generator) -> list[Sample]:
    """The first half of the rows are those of the next response's, as of a cache that was not emptied."""

    def stale(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        if a is None or b is None:
            return a
        n = min(len(a) // 2, len(b) - 1)
        return torch.cat([b[:n], a[n:]])

    following = samples[1:] + samples[:1]
    return [replace(a, routes=stale(a.routes, b.routes)) for a, b in zip(samples, following, strict=True)]


def _from_response(x: Tensor, sample: Sample, g: torch.Generator) -> Tensor:
    """Rows of the response alone, laid from position 0 on."""
    return shift(x, 1 - int(sample.mask.int().argmax()), -1)


def _both_shifted(sample: Sample, g: torch.Generator) -> Sample:
    """Both sides hold the row that produced the token."""
    assert sample.routes is not None
    assert sample.routes_old is not None
    return replace(sample, routes=shift(sample.routes, 1, -1), routes_old=shift(sample.routes_old, 1, -1))


def _copied_layer(x: Tensor, sample: Sample, g: torch.Generator) -> Tensor:
    out = x.clone()
    out[:, -1] = x[:, len(x[0]) // 2]
    return out


def _one(name: str, change: Change, found_by: str, share: float = 1.0) -> Fault:
    return Fault(name=name, inject=rows(change, share), needs=("routes",), found_by=found_by)


TWO = ("routes", "routes_old")
ROUTES = (
    _one("all routes zero", lambda x, s, g: torch.zeros_like(x), "routes without content"),
    _one("all routes -1", lambda x, s, g: torch.full_like(x, -1), "routes without content"),
    _one("one row for all tokens", lambda x, s, g: x[:1].expand_as(x), "routes without content"),
    _one("prefix rows zero in half of the responses", lambda x, s, g: filled(x, _prefix(x), 0), "rows of zeros", 0.5),
    _one("prefix rows -1 in half of the responses", lambda x, s, g: filled(x, _prefix(x), -1), "rows missing", 0.5),
    _one("one row in a hundred -1", lambda x, s, g: filled(x, some(ran(s), 0.01, g), -1), "rows missing"),
    _one("one row short", lambda x, s, g: _end(x, lambda y: torch.full_like(y[0], -1)), "one row short"),
    _one("last row repeated", lambda x, s, g: _end(x, lambda y: y[-3]), "last row repeated"),
    _one("one row for sixteen tokens", _block, "rows repeated"),
    _one(
        "rows that count up on a tenth",
        lambda x, s, g: filled(x, some(ran(s), 0.1, g), _count(x)),
        "rows that count up",
    ),
    Fault(
        name="a fifth of the rows sent to one expert set",
        inject=lambda samples, g: _padding(samples, g, 0.2),
        needs=("routes",),
        found_by="one row for many tokens",
    ),
    _one("an expert twice in a row in a hundred", lambda x, s, g: _twice(x, s, g, 0.01), "duplicate experts in a row"),
    _one("ids beyond the experts", lambda x, s, g: torch.where(x == 0, 1000, x), "expert ids out of range"),
    _one("signed bytes", lambda x, s, g: torch.where(x == 1, -2, x), "broken route rows"),
    _one("a byte of -1", lambda x, s, g: filled(x, _prefix(x), 255), "expert ids out of range"),
    _one("one layer's rows in all", lambda x, s, g: x[:, -1:].expand_as(x), "identical layers"),
    _one("a layer's rows in the last layer", _copied_layer, "identical layers"),
    Fault(name="physical expert ids", inject=relabelled, needs=TWO, found_by="physical expert ids"),
    Fault(
        name="routes off by one",
        inject=column("routes", lambda x, s, g: shift(x, 1, -1)),
        needs=TWO,
        found_by="routes off by one",
    ),
    Fault(
        name="routes off by one, early",
        inject=column("routes", lambda x, s, g: shift(x, -1, -1)),
        needs=TWO,
        found_by="routes off by one",
    ),
    Fault(
        name="both routes off by one",
        inject=each(_both_shifted),
        needs=TWO,
        found_by="routes off by one against the tokens",
    ),
    Fault(
        name="layers off by one",
        inject=rows(lambda x, s, g: torch.roll(x, 1, 1)),
        needs=TWO,
        found_by="layers off by one",
    ),
    Fault(
        name="routes laid from the prompt's first token",
        inject=column("routes", _from_response),
        needs=TWO,
        found_by="routes laid from the prompt",
    ),
    Fault(name="stale rows of a cached prefix", inject=_stale_prefix, needs=TWO, found_by="stale prefix rows"),
    Fault(name="routes of the next response", inject=of_next, needs=TWO, found_by="routes of another response"),
)


def _padding(samples: list[Sample], g: torch.Generator, share: float) -> list[Sample]:
    row = samples[0].routes
    assert row is not None
    return rows(lambda x, s, g: filled(x, some(ran(s), share, g), row[0]))(samples, g)
