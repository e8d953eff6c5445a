"""The detectors of an audit tried: every fault made on good data, and clean dumps that none may accuse."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .audit import border, flat, shown
from .results import Result, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table as Shown
    from rich.text import Text

    from firstorder.core.audit.power import Trial
    from firstorder.core.audit.table import Table
    from firstorder.core.formats.sample import Sample

SCHEMA = "firstorder.self-test/1"
FIRST = 4000  # seed of the first dump: thresholds were chosen on seeds below 1000
SIZES = (300, 1000, 3000, 10_000)  # tokens of a dump
HIDDEN = ("beside", "first", *(f"at_{size}" for size in SIZES))  # columns that a terminal has no room for


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class SelfTestResult(Result):
    """What the detectors catch.

    Args:
        table: a row a fault.
        clean: dumps without a fault.
        accused: by fault, how many of them it was found in.
        missed: faults that a dump of the largest size shows and that were not caught in every one.
    """

    table: Table
    clean: int
    accused: dict[str, int]
    missed: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """No clean dump was accused, and whatever a dump shows was caught."""
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
        return f"{alarms} false alarms on {self.clean:,} clean dumps{named}; {missed}"

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
    from firstorder.core.progress import steps

    started = time.perf_counter()
    looking = detectors(border())
    false = accused((_clean(first + i) for i in steps("clean dumps", range(clean))), looking)
    powers = list(power(steps("faults", _trials(first)), looking, sizes=SIZES, seeds=seeds))
    matrix = table(powers, false, clean)
    missed = tuple(p.trial.name for p in powers if p.trial.found_by and not p.trial.extra and p.caught[SIZES[-1]] < 1)
    found = {"clean": clean, "seeds": seeds, "first": first, "accused": dict(false), "missed": missed}
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "seconds": time.perf_counter() - started,
        "result": found | {"rows": [dict(row) for row in matrix.rows], "columns": [asdict(c) for c in matrix.columns]},
    }
    return SelfTestResult(document=document, table=matrix, clean=clean, accused=dict(false), missed=missed)


def _clean(seed: int) -> list[Sample]:
    """A dump without a fault: made up like text, or of simulated engines, in turns."""
    from firstorder.core.audit.good import good
    from firstorder.sim.trials.dumps import clean

    return good(seed, SIZES[-1]) if seed % 2 else clean(seed, SIZES[-1])


def _trials(first: int) -> list[Trial]:
    """Faults that are put into dumps made up like text, then those that simulated engines make themselves."""
    from firstorder.core.audit.good import good
    from firstorder.core.audit.injection import FAULTS
    from firstorder.core.audit.power import Trial, injected
    from firstorder.sim.trials import dump_faults

    def later(make: Callable[[int, int], list[Sample]]) -> Callable[[int, int], list[Sample]]:
        return lambda seed, tokens: make(first + seed, tokens)

    sources = [
        Trial(name=name, make=later(each.make), found_by=each.detector, extra=each.needs or None, known=each.known)
        for name, each in dump_faults.FAULTS.items()
    ]
    return [*injected(later(good), FAULTS), *sources]
