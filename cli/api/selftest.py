"""The detectors of an audit tried: every fault made on good data, and clean dumps that none may accuse."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial, reduce
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from .audit import border, flat, shown
from .results import Result, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table as Shown
    from rich.text import Text

    from firstorder.core.audit.finding import Known
    from firstorder.core.audit.power import Trial
    from firstorder.core.audit.table import Table
    from firstorder.core.formats.sample import Sample

SCHEMA = "firstorder.self-test/1"
FIRST = 20_000  # seed of the first dump: thresholds were chosen on seeds below 12,000
FARTHEST = 0.1  # nats a token
BITWISE = "exact"  # engines of simulated dumps
SIZES = (300, 1000, 3000, 10_000)  # tokens of a dump
HIDDEN = ("beside", "first", *(f"at_{size}" for size in SIZES))  # columns that a terminal has no room for


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class SelfTestResult(Result):
    """What the detectors catch.

    Args:
        table: a row a fault.
        clean: dumps without a fault.
        accused: by fault, how many of them it was found in.
        missed: faults that every dump of the largest size shows, and that were not caught in each of them.
        weak: the same of faults that not every such dump shows; the matrix says what would show them.
    """

    table: Table
    clean: int
    accused: dict[str, int]
    missed: tuple[str, ...]
    weak: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """No clean dump was accused, and whatever every dump shows was caught."""
        return not self.accused and not self.missed

    def blocks(self) -> Iterator[Shown | Text]:
        """The matrix, and the outcome in a sentence."""
        from rich.text import Text

        yield shown(self.table, HIDDEN)
        yield Text(self._outcome(), style="bold green" if self.passed else "bold red")

    def _outcome(self) -> str:
        alarms = sum(self.accused.values())
        named = f" ({', '.join(f'{name} {n}' for name, n in self.accused.items())})" if alarms else ""
        missed = f"not caught at {SIZES[-1]:,} tokens: {', '.join(self.missed)}" if self.missed else "none missed"
        weak = f"; caught in some dumps alone: {', '.join(self.weak)}" if self.weak else ""
        return f"{alarms} false alarms on {self.clean:,} clean dumps{named}; {missed}{weak}"

    def records(self) -> list[dict[str, Any]]:
        """A row for each fault."""
        return [flat(row) for row in self.table.rows]

    def plot(self) -> Figure:
        """The share of dumps in which each fault is caught, by tokens."""
        require_matplotlib()
        from firstorder.cli.report.bars import Bar, bars

        return bars(
            {
                f"caught at {size:,} tokens": [
                    Bar(label=str(row["fault"]), value=row.get(f"at_{size}")) for row in self.records()
                ]
                for size in SIZES
            }
        )


def self_test(*, clean: int = 200, seeds: int = 5, first: int = FIRST) -> SelfTestResult:
    """Make every fault on good data of simulated engines, run all detectors together, and count false alarms.

    Args:
        clean: dumps of 10,000 tokens without a fault, of several engines, policies and lengths.
        seeds: dumps of each fault and size.
        first: the seed of the first.
    """
    from firstorder import __version__
    from firstorder.core.audit.auditor import detectors
    from firstorder.core.audit.power import accused, power, table
    from firstorder.core.progress import steps, tell

    started, done = time.perf_counter(), 0
    looking = detectors(border())
    false = Counter[str]()
    for samples, known in islice(_clean(first), clean):
        tell("clean dumps", (done := done + 1), clean)
        false += accused([samples], looking, known)
    powers = list(power(steps("faults", _trials(first)), looking, sizes=SIZES, seeds=seeds))
    matrix = table(powers, false, clean)
    unsure = [p.trial for p in powers if p.trial.found_by and p.caught[SIZES[-1]] < 1]
    missed, weak = (tuple(t.name for t in unsure if bool(t.extra) == some) for some in (False, True))
    found = {"clean": clean, "seeds": seeds, "first": first, "accused": dict(false), "missed": missed, "weak": weak}
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "seconds": time.perf_counter() - started,
        "result": found | {"rows": [dict(row) for row in matrix.rows], "columns": [asdict(c) for c in matrix.columns]},
    }
    return SelfTestResult(document=document, table=matrix, clean=clean, accused=dict(false), missed=missed, weak=weak)


def _clean(first: int) -> Iterator[tuple[list[Sample], Known]]:
    """Dumps without a fault, made up like text or of simulated engines in turns, and what is known of their runs.

    Engines that agree bit for bit are left out: no dump tells them from an array that was copied. So are those whose k3
    is above `FARTHEST`, with which nobody trains.
    """
    from firstorder.core.audit.finding import Known
    from firstorder.core.audit.good import experts_of, good
    from firstorder.sim.trials.dumps import choice, clean

    for seed in count(first):
        if seed % 2:
            yield good(seed, SIZES[-1]), Known(experts=experts_of(seed))
        elif (chosen := choice(seed)).engines != BITWISE:
            samples = clean(seed, SIZES[-1])
            if _k3(samples) <= FARTHEST:
                yield samples, Known(replay=chosen.replay)


def _k3(samples: list[Sample]) -> float:
    """Nats a token of a whole dump."""
    from firstorder.core.audit.finding import merged
    from firstorder.core.audit.size import size, terms
    from firstorder.core.formats.chunk import chunks

    return size(reduce(merged, map(terms, chunks(samples)))).k3


def _trials(first: int) -> list[Trial]:
    """Faults that are put into dumps made up like text, then those that simulated engines make themselves."""
    from firstorder.core.audit.finding import Known
    from firstorder.core.audit.good import experts_of, good
    from firstorder.core.audit.injection import FAULTS
    from firstorder.core.audit.power import Trial, injected
    from firstorder.sim.trials import dump_faults

    def later(make: Callable[[int, int], list[Sample]]) -> Callable[[int, int], list[Sample]]:
        return lambda seed, tokens: make(first + seed, tokens)

    sources = [
        Trial(
            name=name,
            make=later(each.make),
            found_by=each.detector,
            extra=each.needs or None,
            known=partial(_told, each.known),
        )
        for name, each in dump_faults.FAULTS.items()
    ]
    return [*injected(later(good), FAULTS, lambda seed: Known(experts=experts_of(first + seed))), *sources]


def _told(known: Known, seed: int) -> Known:
    return known
