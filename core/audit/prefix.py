"""Prefix: rows at the start of a response that are those of other tokens, as a cache that was not emptied leaves them.

    lead = the first tokens in a row at which two sets share at most half of the experts,   P(lead >= r) = q^r

with q the share of such tokens behind them, in all responses.

Shapes: B responses, L positions, M MoE layers, K experts a token.
"""

from __future__ import annotations

import math

import torch

from firstorder.core.formats.chunk import Chunk
from firstorder.core.training.replay import run_rows

from .finding import EACH, Detector, Finding, Known, Sums, first
from .odds import LEVEL
from .rows import shared, spread_layers

LOOKED = 64  # tokens from the first of each response, and as many to the last
LAYERS = 6
UNSEEN = 21  # events by which none in n bounds a rate at the level: -log(1e-9)


def prefix_sums(chunk: Chunk) -> Sums:
    """Of each response the tokens that are far apart, those at its start, and how many were looked at."""
    assert chunk.routes is not None
    assert chunk.routes_old is not None
    layers, length = spread_layers(chunk.routes.shape[2], LAYERS), chunk.tokens.shape[-1]
    early = torch.arange(min(LOOKED, length)).expand(len(chunk.lengths), -1)
    late = (chunk.lengths - 1 - LOOKED).clamp(min=LOOKED)[:, None] + early
    place = torch.cat([early, late], dim=-1)
    run = run_rows(chunk.lengths, length).gather(-1, place.clamp(max=length - 1)) & (place < length)
    row = torch.arange(len(place))[:, None]
    a, b = (x[row, place.clamp(max=length - 1)][:, :, layers] for x in (chunk.routes, chunk.routes_old))
    there = run & (a[..., 0] >= 0).all(-1) & (b[..., 0] >= 0).all(-1)
    far = there & (shared(a, b).sum(-1) * 2 <= a.shape[-1] * len(layers))
    lead = far[:, : early.shape[-1]].int().cumprod(-1).sum(-1)
    return {EACH + "lead": lead, EACH + "far": far.sum(-1), EACH + "tokens": there.sum(-1)}


def judge_prefix(sums: Sums, known: Known) -> Finding | None:
    """A lead that is too long, in some response."""
    lead, far, tokens = (sums[EACH + name] for name in ("lead", "far", "tokens"))
    behind = int((tokens - lead).sum())
    rate = min(1.0, (int((far - lead).sum()) + UNSEEN) / max(behind, 1))
    hits = lead * math.log(rate) < math.log(LEVEL / max(len(lead), 1))
    if not hits.any():
        return None
    return Finding(
        fault="stale prefix rows",
        evidence=f"{int(hits.sum())} of {len(hits)} responses begin with up to {int(lead.max())} rows that share "
        f"at most half of their experts with the trainer's; {int((far - lead).sum())} of {behind} others looked at do.",
        questions=(
            "does the engine keep rows of a cached prefix, and are they overwritten with the cache?",
            "were the cached tokens run with older weights?",
        ),
        place=first(hits),
    )


DETECTORS = (
    Detector(
        fault="stale prefix rows",
        stage=4,
        needs=("routes", "routes_old"),
        measure=prefix_sums,
        judge=judge_prefix,
        rule=f"so many of the first {LOOKED} tokens of a response that share at most half of the experts, in {LAYERS} "
        f"layers, as chance gives less than once in {1 / LEVEL:g} responses, at the rate behind them",
    ),
)
