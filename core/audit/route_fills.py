"""Fills in routes: zeros, -1, ranges, repeats, one row for many tokens; and ids that no router chooses.

A row is the routing of one token in one layer. A layer whose rows are the same throughout a dump is no router's work:
where such layers stand first, last or at regular distances they are taken for dense ones, which formats that list all
layers fill up.

Shapes: B responses, L positions, M layers, K experts a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.core.formats.chunk import Chunk
from firstorder.core.training.replay import run_rows

from .finding import EACH, Sums
from .rows import SIDES, hashes, inner, negative, same, words

WIDE = 16  # ids of a token over all layers; of fewer, tokens that differ are often routed alike
CHECKED = 1 << 19  # rows of a chunk that are looked through for duplicates; every n-th where there are more
SAMPLED = 1024  # tokens of a chunk whose rows are compared with each other and with those of other layers


def fill_sums(chunk: Chunk) -> Sums:
    """What every detector of fills needs, of each side; names begin with the side."""
    sums: Sums = {}
    for side, name in SIDES.items():
        if (ids := getattr(chunk, name)) is not None:
            found = _rows(ids, chunk) | _duplicates(ids, chunk) | _samples(ids, chunk)
            sums |= {_named(side, key): value for key, value in found.items()}
    return sums


def _named(side: str, key: str) -> str:
    return f"{EACH}{side} {key[len(EACH) :]}" if key.startswith(EACH) else f"{side} {key}"


def _rows(ids: Tensor, chunk: Chunk) -> Sums:
    """Counts by layer `[M]`, and by response what is missing, zero, repeated or a range."""
    w = words(ids)
    run = run_rows(chunk.lengths, ids.shape[1])
    missing = same(w, -1) & run[..., None]
    zero = same(w, 0) & run[..., None] & (ids.shape[3] > 1)  # of one expert a token, 0 is a choice
    broken = negative(w) & run[..., None] & ~missing
    repeated = torch.zeros_like(missing)
    repeated[:, 1:] = same(w[:, 1:], w[:, :-1])
    pairs = run.clone()
    pairs[:, 1:] &= run[:, :-1]
    pairs[:, 0] = False
    changes = (pairs[..., None] & ~repeated).sum((0, 1))
    active = changes > 0
    gone, blank, again = (x[..., active].all(-1) & active.any() for x in (missing, zero, repeated))
    again &= pairs & ~gone & ~blank & (ids.shape[2] * ids.shape[3] >= WIDE)
    again[:, 1:] &= chunk.tokens[:, 1:] != chunk.tokens[:, :-1]  # a repeated token may well be routed alike
    fresh = pairs.clone()
    fresh[:, 1:] &= chunk.tokens[:, 1:] != chunk.tokens[:, :-1]
    last = (chunk.lengths - 2)[:, None]

    def at_last(x: Tensor, back: int = 0) -> Tensor:
        return x.gather(-1, (last - back).clamp(min=0))[:, 0] & (chunk.lengths > 2 + back)

    ranged = _ranges(ids) & run
    return {
        "rows": run.sum(),
        "missing": missing.sum((0, 1)),
        "zero": zero.sum((0, 1)),
        "broken": broken.sum((0, 1)),
        "changes": changes,
        EACH + "rows": run.sum(-1),
        EACH + "missing": gone.sum(-1),
        EACH + "zero": blank.sum(-1),
        EACH + "prefix": ((gone | blank).int().cumprod(-1)).sum(-1),
        EACH + "short": at_last(gone | blank) & ~at_last(gone | blank, 1) & (chunk.lengths > 3),
        EACH + "broken": broken.flatten(1).any(-1),
        EACH + "repeated": again.sum(-1),
        EACH + "fresh": fresh.sum(-1),
        EACH + "last": at_last(again),
        EACH + "last fresh": at_last(fresh),
        EACH + "ranges": ranged.sum(-1),
        EACH + "most": ids.flatten(1).amax(-1).long(),
        EACH + "width": torch.full((len(ids),), ids.shape[2] * ids.shape[3]),
    }


def _ranges(ids: Tensor) -> Tensor:
    """Tokens whose ids count up through all layers, starting again from 0 where they like; bool `[B, L]`."""
    if ids.shape[2] * ids.shape[3] < WIDE:
        return torch.zeros_like(ids[..., 0, 0], dtype=torch.bool)
    out = _counts_up(ids[..., -1, :])
    place = out.nonzero(as_tuple=True)
    flat = ids[place].flatten(1)
    out[place] = _counts_up(flat) & (flat != 0).any(-1)
    return out


def _counts_up(ids: Tensor) -> Tensor:
    """Whether `[..., n]` are a, a + 1, ..., starting again from 0 where they like; bool `[...]`."""
    up = (ids[..., 1:] == ids[..., :-1] + 1) | (ids[..., 1:] == 0)
    return up.all(-1) & (ids[..., 0] >= 0)


def _duplicates(ids: Tensor, chunk: Chunk) -> Sums:
    """Rows that name an expert twice, of a sample of rows that are neither missing nor zero; by layer."""
    layers, k = ids.shape[2:]
    run = run_rows(chunk.lengths, ids.shape[1])
    flat = ids.reshape(-1, k)
    stride = max(1, -(-len(flat) // CHECKED))
    while stride > 1 and layers % stride == 0:  # else the same layers every time
        stride += 1
    place = torch.arange(0, len(flat), stride)
    rows = flat[place].movedim(-1, 0).contiguous()
    twice = torch.zeros(len(place), dtype=torch.bool)
    for i in range(k):
        for j in range(i):
            twice |= rows[i] == rows[j]
    token = place // layers
    counted = run.flatten()[token] & (rows >= 0).all(0) & (rows != 0).any(0)
    twice &= counted
    by_layer = torch.bincount((place % layers)[twice], minlength=layers)
    response = torch.bincount((token // ids.shape[1])[twice], minlength=len(ids))
    return {"duplicates": by_layer, "looked at": counted.sum(), EACH + "duplicates": response > 0}


def _samples(ids: Tensor, chunk: Chunk) -> Sums:
    """How often two layers have the same row at a token, `[M, M]`; and the most frequent row of all layers together."""
    place = inner(chunk, SAMPLED)
    rows = ids.flatten(0, 1)[place]
    w = words(rows)
    there = ~negative(w).any(-1) & ~same(w, 0).all(-1)
    h, token = hashes(w)[there], chunk.tokens.flatten()[place][there]
    layers = ids.shape[2]
    equal = torch.zeros(layers, layers, dtype=torch.int64)
    for block in torch.split(h, 256):
        equal += (block[:, :, None] == block[:, None, :]).sum(0)
    often = torch.zeros(4, dtype=torch.float64)
    steady = torch.zeros(layers, dtype=torch.int64)
    if len(h):
        mode = h.mode(0).values
        steady = (h == mode).sum(0)
        active = steady < len(h)
        whole = (h[:, active] * (torch.arange(int(active.sum())) * 2 + 1)).sum(-1)
        common = whole == whole.mode().values
        ids_of = token[common]
        others = int((ids_of != ids_of.mode().values).sum())
        chance = float((steady[active] / len(h)).double().log().sum().exp()) if active.any() else 1.0
        if layers * ids.shape[3] >= WIDE:
            often = torch.tensor([len(h), int(common.sum()), others, chance * len(h)], dtype=torch.float64)
    return {"equal": equal, "steady": steady, "sampled": torch.tensor(len(h)), "often": often}
