"""Routes against the tokens: by how many tokens one set of routes is off, with no second set to compare it to.

What a router of an early layer chooses depends on its token most, so rows of equal tokens agree, and those of unequal
ones do not.

Shapes: B responses, L positions, M MoE layers, K experts a token, T tokens of a sample.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from firstorder.core.formats.chunk import Chunk

from .finding import Detector, Finding, Known, Sums
from .odds import DEPENDENCE, Z
from .rows import SIDES, inner, shared

EARLY = 4  # layers from the first that are read against the tokens; dense ones among them agree everywhere
PAIRED = 8192  # tokens of a chunk whose rows are compared with the next one of the same id
FEWEST_PAIRS = 30
DISTINCT = 100  # token ids of a chunk: of few, contexts come back and say as much of a row as its token does
EFFECT = 0.1  # of the experts of a row: what is less may come from attention to the token before
MOVES = (-1, 1)


def token_sums(chunk: Chunk) -> Sums:
    """How far rows of equal tokens agree in early layers, at row t's token t + s but not at t, and the other way round.

    Each pair is a token and the next of the same id; n, Σ x, Σ x² of the share x of experts that they have in common.
    """
    place = inner(chunk, PAIRED)
    tokens = chunk.tokens.flatten()
    at = {s: tokens[place + s] for s in (0, *MOVES)}
    if len(torch.unique(at[0])) < DISTINCT:
        place = place[:0]
        at = dict.fromkeys(at, place)
    sums: Sums = {}
    for side, name in SIDES.items():
        if (ids := getattr(chunk, name)) is None:
            continue
        rows = ids.flatten(0, 1)[place][:, :EARLY]
        for s in MOVES:
            sums[f"{side} {s:+d}"] = _agreement(rows, at[s], at[0])
            sums[f"{side} {s:+d} own"] = _agreement(rows, at[0], at[s])
    return sums


def _agreement(rows: Tensor, equal: Tensor, unequal: Tensor) -> Tensor:
    """n, Σ x, Σ x² over neighbours in the order of `equal` that have it in common and `unequal` not, `[3]`."""
    order = equal.argsort(stable=True)
    p, q = order[:-1], order[1:]
    pair = (equal[p] == equal[q]) & (unequal[p] != unequal[q])
    p, q = p[pair], q[pair]
    x = shared(rows[p], rows[q]).double().mean(-1) / rows.shape[-1]
    return torch.stack([torch.tensor(float(len(x)), dtype=torch.float64), x.sum(), x.square().sum()])


def judge_own(sums: Sums, known: Known) -> Finding | None:
    """Rows agree better where a neighbouring token is the same."""
    for side in SIDES:
        for s in MOVES if f"{side} +1" in sums else ():
            there, own = _mean(sums[f"{side} {s:+d}"]), _mean(sums[f"{side} {s:+d} own"])
            if min(there[0], own[0]) < FEWEST_PAIRS:
                continue
            z = (there[1] - own[1]) / math.sqrt(DEPENDENCE * (there[2] + own[2]) + 1e-12)
            if z > Z and there[1] - own[1] > EFFECT:
                return Finding(
                    fault="routes off by one against the tokens",
                    evidence=f"rows of the {side} share {there[1]:.0%} of their experts in the first layers where "
                    f"token t {s:+d} is the same ({there[0]:.0f} pairs) and {own[1]:.0%} where token t is "
                    f"({own[0]:.0f} pairs): row t holds the routing of token t {s:+d}.",
                    questions=(
                        "does row t hold the routing of token t, or that which produced token t?",
                        "does the trainer read the rows the same way?",
                    ),
                )
    return None


def _mean(moments: Tensor) -> tuple[float, float, float]:
    """n, mean, and squared standard error of the mean with the spread of a share added where all are alike."""
    n, total, square = moments.tolist()
    mean = total / max(n, 1.0)
    return n, mean, (max(square / max(n, 1.0) - mean**2, 0.0) + 1.0 / max(n, 1.0)) / max(n, 1.0)


DETECTORS = (
    Detector(
        fault="routes off by one against the tokens",
        stage=2,
        needs=("routes",),
        measure=token_sums,
        judge=judge_own,
        rule=f"rows of the first {EARLY} layers agree more between equal neighbouring tokens than between equal own "
        f"tokens, by {EFFECT:g} of a row and z > {Z:g}, from {FEWEST_PAIRS} pairs of each, in chunks of {DISTINCT} "
        "token ids or more",
    ),
)
