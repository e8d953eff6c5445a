"""Labels: whether two sets of routes name the same experts by other ids, as places of weights do under load balancing.

Shapes: B responses, L positions, M MoE layers, m of them looked at, K experts a token, E ids told apart.
"""

from __future__ import annotations

import math

import torch

from firstorder.core.formats.chunk import Chunk

from .finding import Detector, Finding, Known, Sums
from .odds import LEVEL, tails
from .rows import inner, spread_layers

TOKENS, LAYERS = 2048, 6  # of a chunk, and of the model
EXPERTS = 512  # the most ids that are told apart
RELABELLED = 0.5  # of the experts of a layer, whose tokens have another id on the other side
BOTH = ("routes", "routes_old")


def label_sums(chunk: Chunk) -> Sums:
    """How often expert a of the rollout meets expert b of the trainer at a token, `[m, E, E]`."""
    assert chunk.routes is not None
    assert chunk.routes_old is not None
    place, layers = inner(chunk, TOKENS), spread_layers(chunk.routes.shape[2], LAYERS)
    a, b = (x.flatten(0, 1)[place][:, layers].long() for x in (chunk.routes, chunk.routes_old))
    valid = (a >= 0).all(-1) & (b >= 0).all(-1) & (a < EXPERTS).all(-1) & (b < EXPERTS).all(-1)
    met = []
    for m in range(len(layers)):
        here = valid[:, m]
        pairs = a[here, m][:, :, None] * EXPERTS + b[here, m][:, None, :]
        met.append(torch.bincount(pairs.flatten(), minlength=EXPERTS**2).reshape(EXPERTS, EXPERTS))
    return {"met": torch.stack(met), "tokens": valid.sum(0), "layers": layers * 0 + 1, "k": valid.sum(0) * a.shape[-1]}


def judge_labels(sums: Sums, known: Known) -> Finding | None:
    """Most experts of a layer meet one other expert far more often than themselves."""
    met, tokens = sums["met"].double(), sums["tokens"].double()
    k = float(sums["k"].sum()) / max(float(tokens.sum()), 1.0)
    moved, seen = [], []
    for counts in (met, met.transpose(1, 2)):  # one name may stand for several experts on either side
        n, other = counts.sum(-1) / max(k, 1.0), counts.sum(-2) / max(k, 1.0)
        own = counts.diagonal(dim1=1, dim2=2)
        best, at = counts.max(-1)
        chance = other.gather(-1, at) / tokens[:, None].clamp(min=1.0)
        sure = tails(best, n, chance) < math.log(LEVEL / EXPERTS)
        moved.append((sure & (best > 2 * own)).sum(-1))
        seen.append((sure | (own > best / 2)).logical_and(n > 0).sum(-1))
    share = torch.stack([m / s.clamp(min=1) for m, s in zip(moved, seen, strict=True)]).amax(0)
    enough = torch.stack(seen).amax(0) >= 2
    if not bool(((share > RELABELLED) & enough).any()):
        return None
    layer = int(torch.where(enough, share, 0.0).argmax())
    return Finding(
        fault="physical expert ids",
        evidence=f"in {int(((share > RELABELLED) & enough).sum())} of {len(share)} layers looked at, experts of the "
        f"rollout are experts of the trainer under other ids: {float(share[layer]):.0%} of them in one layer, over "
        f"{int(tokens[layer])} tokens.",
        questions=(
            "is expert-parallel load balancing on, so that ids are places of weights rather than experts?",
            "which map from physical to logical experts held when these tokens were sampled?",
        ),
    )


DETECTORS = (
    Detector(
        fault="physical expert ids",
        stage=4,
        needs=BOTH,
        measure=label_sums,
        judge=judge_labels,
        rule=f"more than {RELABELLED:.0%} of the experts of a layer meet one other id on the other side twice as often "
        f"as their own and more often than chance (Chernoff bound {LEVEL:g} / {EXPERTS})",
    ),
)
