"""The table by decile of the probability that μ gave to the token it sampled.

The deciles of a dump are known when all of it is read. So that it is read once, what every response adds is kept in
fine bins of -log μ with its covariance, and bins are put together to tenths in the end, intervals included.

Shapes: B responses, L positions, F bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .bins import LogBins
from .clustered import Blocks, Clusters, clusters, estimates
from .seen import Seen
from .strata import AVERAGED, NOTE, columns, token_pairs
from .table import Cell, Table

BINS = LogBins(lowest=-20, highest=6, per_octave=4)  # of -log μ in nats: what is within 1e-6 of 1 is one bin
DECILES = 10
ROUTED = "route/flip_rate"


def measured(seen: Seen) -> Clusters | None:
    """What each response of a chunk adds to every bin; None without log-probs of μ."""
    mu, where = seen.chunk.logp_mu, seen.usable
    if mu is None:
        return None
    rows, place = where.nonzero()[:, 0], BINS.place(-mu[where])

    def binned(x: Tensor) -> Tensor:
        return BINS.sums(rows, place, x[where], len(mu))

    blocks: Blocks = {"tokens": binned(where.double())}
    for name, (x, n) in token_pairs(seen).items():
        if name in AVERAGED and name != "route/tokens_flipped":
            blocks[name] = binned(x)
            if name == ROUTED:
                blocks["rows"] = binned(n)
    return clusters(blocks)


def table(of: Clusters) -> Table:
    """The table: a row for each tenth of the tokens, as well as the bins allow."""
    rows: list[dict[str, Cell]] = []
    for first, last in tenths(of.sums["tokens"]):
        tokens = of.sums["tokens"][first : last + 1].sum()
        part = f"{_probability(last + 1)} to {_probability(first)}"
        rows.append({"part": part, "tokens": round(float(tokens)), **estimates(of, _pooled(first, last))})
    rows.reverse()  # from improbable tokens to probable ones
    note = f"{NOTE} A row is the tenth of the tokens that bins of -log mu, {BINS.width - 1:.0%} wide, come closest to."
    return Table(
        name="by-decile",
        title="By decile of the probability of the sampled token",
        columns=columns("mu(token)", "probability", rows),
        rows=tuple(rows),
        note=note,
    )


def tenths(tokens: Tensor) -> list[tuple[int, int]]:
    """First and last bin of each tenth, borders where the count is closest to k / 10 of all; none is empty.

    Args:
        tokens: in each bin, `[F]`.
    """
    upto = tokens.cumsum(0)
    wanted = upto[-1] * torch.arange(1, DECILES, dtype=upto.dtype)[:, None] / DECILES
    ends = sorted({*(upto - wanted).abs().argmin(-1).tolist(), len(tokens) - 1})
    pieces = zip([0, *(end + 1 for end in ends[:-1])], ends, strict=True)
    return [(first, last) for first, last in pieces if tokens[first : last + 1].sum() > 0]


def _pooled(first: int, last: int) -> Callable[[Blocks], Mapping[str, Tensor]]:
    """The means over some bins, from the sums of all."""

    def means(sums: Blocks) -> dict[str, Tensor]:
        total = {name: block[first : last + 1].sum() for name, block in sums.items()}
        below = {name: total["rows" if name == ROUTED else "tokens"] for name in AVERAGED if name in total}
        return {name: total[name] / n for name, n in below.items() if n > 0}

    return means


def _probability(place: int) -> str:
    """The probability at the lower border of a bin of -log μ, for people."""
    if place <= 0:
        return "1"
    if place >= BINS.count:
        return "0"
    x = BINS.border(place)
    return f"1 - {-math.expm1(-x):.2g}" if x < 0.01 else f"{math.exp(-x):.3g}"
