"""Tally: all numbers of an audit, added up over chunks.

    whole = reduce(merged, map(tally, chunks)),   whole.tables()

Every chunk is read once, in any order; nothing is kept of a token. The state is of constant size but for steps and
weight versions, of which each has some kilobytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from firstorder.core.formats.chunk import Chunk
from firstorder.core.runs.logs import Line

from . import clustered, deciles, numbers, ratios, replays, routing_tables, steps, strata, weights
from .bounds import possible
from .cells import Cells
from .clustered import Clusters
from .routing_tables import Routed
from .seen import Seen
from .steps import Steps
from .table import Table

State = TypeVar("State")


@dataclass(frozen=True, kw_only=True)
class Tally:
    """The sums of what was read; None where a dump has no columns for a part.

    Args:
        counts: steps, responses, responses without a usable token, tokens, sampled, usable and unusable ones.
        numbers: responses with the moments of every quantity.
        parts: cells by the name of their table.
        deciles: responses in bins of the probability of the sampled token.
        steps: the sums of every step.
        weights: responses under every shipped recipe's weight.
        ratios: responses with the moments of every pair of policies, where π_θ is one.
        routed: routes by layer and position.
        replays: what Routing Replay would change.
        signed: whether there were advantages.
    """

    counts: Mapping[str, int]
    numbers: Clusters
    parts: Mapping[str, Cells]
    deciles: Clusters | None
    steps: Steps
    weights: Clusters | None
    ratios: Clusters | None
    routed: Routed | None
    replays: Clusters | None
    signed: bool

    def tables(self, minibatches: int = 1) -> tuple[Table, ...]:
        """All that the dump has columns for.

        Args:
            minibatches: updates a step, N of the recipe; 1 where it is not known.
        """
        found = [numbers.table(self.numbers, strata.staleness(self.parts)), *strata.tables(self.parts)]
        if self.deciles is not None:
            found.append(deciles.table(self.deciles))
        if self.routed is not None:
            found += routing_tables.tables(self.routed)
        if self.weights is not None and self.counts["tokens_usable"]:
            found.append(weights.table(self.weights, signed=self.signed))
        if self.ratios is not None:
            found.append(ratios.table(self.ratios))
        if self.replays is not None:
            found.append(replays.table(self.replays))
        found.append(steps.signals(self.lines(), minibatches))
        return tuple(possible(table) for table in found if table.rows)

    def lines(self) -> list[Line]:
        """A line a step, as a run's log has them, for alarms."""
        return steps.lines(self.steps)


def tally(chunk: Chunk) -> Tally:
    """The sums of one chunk."""
    seen = Seen(chunk=chunk)
    moments, routed = numbers.per_response(seen), routing_tables.measured(seen)
    usable = seen.usable.sum(-1)
    sampled = int(chunk.mask.sum())
    return Tally(
        counts={
            "responses": len(usable),
            "responses_unusable": int((usable == 0).sum()),
            "tokens": int(chunk.lengths.sum()),
            "tokens_sampled": sampled,
            "tokens_usable": int(usable.sum()),
            "tokens_unusable": sampled - int(usable.sum()),
        },
        numbers=numbers.measured(seen, moments),
        parts=strata.measured(seen),
        deciles=deciles.measured(seen),
        steps=steps.measured(seen, moments if routed is None else moments | routed[1]),
        weights=weights.measured(seen),
        ratios=ratios.measured(seen),
        routed=None if routed is None else routed[0],
        replays=replays.measured(seen),
        signed=chunk.advantage is not None,
    )


def merged(a: Tally, b: Tally) -> Tally:
    """What was read of both."""
    return Tally(
        counts={name: a.counts[name] + b.counts[name] for name in a.counts},
        numbers=clustered.merged(a.numbers, b.numbers),
        parts=strata.merged(a.parts, b.parts),
        deciles=_either(a.deciles, b.deciles, clustered.merged),
        steps=steps.merged(a.steps, b.steps),
        weights=_either(a.weights, b.weights, clustered.merged),
        ratios=_either(a.ratios, b.ratios, clustered.merged),
        routed=_either(a.routed, b.routed, routing_tables.merged),
        replays=_either(a.replays, b.replays, clustered.merged),
        signed=a.signed or b.signed,
    )


def _either(a: State | None, b: State | None, both: Callable[[State, State], State]) -> State | None:
    if a is None or b is None:
        return a if b is None else b
    return both(a, b)
