"""How large a world is, and whether it fits into memory, before anything is allocated."""

from __future__ import annotations

import math
from bisect import bisect_right

from firstorder.core.errors import SizeError
from firstorder.sim.config import Sim
from firstorder.sim.tasks import task_of
from firstorder.sim.tasks.recursion import KEPT

LARGEST_INDEX = 2**31 - 1  # of an edge, which is an int32
MOST_DIGITS = 1 << 10  # binary ones, above which a count is only called large
EDGE = 96  # float64 numbers of an edge that are alive at once, 56 to 65 measured: passes, weights at each sign, sums
TOKEN = 32  # of a sampled token; 20 measured
FIXED = 1 << 26  # bytes that any measurement takes: modules that are imported late, what the allocator holds
WORKING_ROWS = 3 << 15  # tokens whose graph is alive at once before checkpointing bounds it


def count(sim: Sim) -> int:
    """Contexts of the world that `sim` describes."""
    if sim.world == "graph":
        return sim.prompts * sim.places
    return sim.prompts * _series(sim.vocab - sim.first, sim.horizon)


def answers(sim: Sim) -> int:
    """Tokens that environments say in that tree."""
    layout = task_of(sim).layout
    turns = (sim.horizon - 1) // layout.turn
    return sim.prompts * layout.answer * (_series(power(sim.vocab - sim.first, layout.turn), turns + 1) - 1)


def check_size(sim: Sim, members: int, available: int) -> None:
    """Refuse a world that does not fit, before anything is allocated.

    Args:
        sim: the sizes.
        members: ensemble members held at once.
        available: bytes of free memory.

    Raises:
        SizeError: with the number of contexts, the bytes and a horizon that fits.
    """
    contexts, of = count(sim), _SIZES[sim.world]
    if bytes_needed(sim, members) <= available:
        if contexts * sim.vocab > LARGEST_INDEX:
            raise SizeError(
                f"{of} x sim.vocab gives {_short(contexts * sim.vocab)} edges at "
                f"sim.horizon = {sim.horizon}, and they are counted in 32 bits; lower "
                + ("sim.horizon or sim.prompts" if sim.world == "tree" else "sim.prompts, sim.positions or sim.vocab")
            )
        return
    fits = bisect_right(
        range(1, min(sim.horizon, 1 << 60)),
        available,
        key=lambda horizon: bytes_needed(sim.model_copy(update={"horizon": horizon}), members),
    )
    others = (
        "sim.vocab or sim.prompts" if sim.world == "tree" else "sim.vocab, sim.prompts, sim.positions or sim.samples"
    )
    raise SizeError(
        f"{of} gives {_short(contexts)} contexts at sim.horizon = {sim.horizon}, "
        f"about {_short(bytes_needed(sim, members) >> 30)} GiB, but {available / 2**30:.1f} GiB are free; lower "
        + (f"sim.horizon to {fits}, or {others}" if fits else others)
    )


def bytes_needed(sim: Sim, members: int) -> int:
    """Estimated peak bytes of an exact measurement, fitted to measured peaks (docs/benchmarks.md)."""
    return _graph_bytes(sim, members) if sim.world == "graph" else _tree_bytes(sim, members)


def _tree_bytes(sim: Sim, members: int) -> int:
    """Per context: what the engine passes keep. Per context and token of an environment: the states that two graphs
    hold. Per response: its path. And the working space of two graphs over what is run at once."""
    contexts = count(sim)
    tokens = contexts + answers(sim)
    passes = 8 * 8 * (sim.vocab + (2 + sim.experts) * sim.layers)
    states = 8 * 10 * sim.layers * sim.width * tokens
    response = 5 * sim.horizon + 16
    return contexts * (members * passes + sim.vocab * response) + members * states + _working(sim, members * tokens)


def _graph_bytes(sim: Sim, members: int) -> int:
    """Per edge: what is said of it. Per context and block of steps: its values. Per token of the sample: its weight and
    what diagnostics read. And the working space of two graphs over what is run at once."""
    rows = members * count(sim)
    values = rows * max(2, sim.positions + 1 if sim.graded else 0)  # of either sign, or of every reward level
    edges = 8 * EDGE * sim.vocab * rows
    steps = 8 * (min(values * sim.horizon, KEPT) + 2 * values * math.isqrt(sim.horizon))
    sample = 8 * TOKEN * members * max(sim.samples, sim.prompts) * sim.horizon
    return FIXED + edges + steps + sample + 8 * sim.inputs * count(sim) + _working(sim, rows)


def _working(sim: Sim, rows: int) -> int:
    experts = sim.experts * sim.expert_width
    return 2 * 8 * sim.layers * (6 * experts + 8 * sim.width) * min(rows, WORKING_ROWS)


_SIZES = {
    "tree": "sim.prompts x (sim.vocab - 1)^depth",
    "graph": "sim.prompts x sim.positions, on the chain and off it,",
}


def _series(ratio: int, terms: int) -> int:
    """1 + r + r² + ..., the sum of the first `terms` powers."""
    return terms if ratio == 1 else (power(ratio, terms) - 1) // (ratio - 1)


def power(base: int, exponent: int) -> int:
    """base^exponent, or where that is beyond any memory a number that is too: its digits alone would take for ever."""
    return int(base ** min(exponent, MOST_DIGITS))


def _short(n: int) -> str:
    """A count of any size in a few characters."""
    if n < 10**9:
        return f"{n:,}"
    digits = int(n.bit_length() * math.log10(2))
    return f"10^{digits}" if digits < MOST_DIGITS * math.log10(2) else "far too many"
