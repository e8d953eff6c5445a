"""Power: which detector catches which fault from how many tokens on, and what clean dumps are accused of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from firstorder.core.formats.chunk import chunks
from firstorder.core.formats.sample import Sample

from .finding import Detector, Known
from .injecting import Fault
from .judge import judge_all
from .table import Cell, Column, Table

CAUGHT = 0.99  # of the seeds, for a size to count as enough

Dump = Callable[[int, int], list[Sample]]
"""A clean dump of about so many tokens, by a seed."""


def untold(seed: int) -> Known:
    """An audit is told nothing beside the dump."""
    return Known()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A fault that can be made at any size.

    Args:
        name: of the fault and its strength.
        make: a dump of (seed, tokens) that has it.
        found_by: the fault that an audit reports; None where a dump does not show it.
        extra: what would show it, where a dump does not.
        known: what an audit is told beside the dump, by its seed.
    """

    name: str
    make: Dump
    found_by: str | None
    extra: str | None = None
    known: Callable[[int], Known] = untold


@dataclass(frozen=True, kw_only=True)
class Power:
    """How a fault fares.

    Args:
        trial: of the fault.
        caught: by the tokens of a dump, the share of seeds in which its detector found it.
        first: the share, at the largest size, in which it was also the first finding.
        beside: what else was found at the largest size, and in how many seeds.
    """

    trial: Trial
    caught: dict[int, float]
    first: float
    beside: dict[str, int]

    @property
    def enough(self) -> int | None:
        """The fewest tokens from which on it is caught in `CAUGHT` of the seeds; None where none is enough."""
        sizes = sorted(self.caught, reverse=True)
        good = [size for i, size in enumerate(sizes) if all(self.caught[s] >= CAUGHT for s in sizes[: i + 1])]
        return min(good) if good else None


def found(samples: Iterable[Sample], detectors: Sequence[Detector], known: Known | None = None) -> tuple[str, ...]:
    """The faults found in samples, in order."""
    return tuple(finding.fault for finding in judge_all(chunks(samples), detectors, known)[0])


def accused(dumps: Iterable[list[Sample]], detectors: Sequence[Detector], known: Known | None = None) -> Counter[str]:
    """False alarms: by fault, the clean dumps in which it was found."""
    return Counter(fault for samples in dumps for fault in set(found(samples, detectors, known)))


def injected(dump: Dump, faults: Iterable[Fault], known: Callable[[int], Known] = untold) -> tuple[Trial, ...]:
    """The trials of faults put into clean dumps, but for those that the dumps lack the columns of."""
    there = dump(0, 1)
    return tuple(_injected(dump, fault, known) for fault in faults if possible(there, fault))


def _injected(dump: Dump, fault: Fault, known: Callable[[int], Known]) -> Trial:
    def make(seed: int, tokens: int) -> list[Sample]:
        return fault.inject(dump(seed, tokens), torch.Generator().manual_seed(seed))

    return Trial(name=fault.name, make=make, found_by=fault.found_by, extra=fault.extra, known=known)


def possible(samples: Iterable[Sample], fault: Fault) -> bool:
    """Whether samples have what a fault changes."""
    return all(getattr(sample, name) is not None for sample in samples for name in fault.needs)


def power(
    trials: Iterable[Trial],
    detectors: Sequence[Detector],
    *,
    sizes: Sequence[int] = (300, 1000, 3000, 10000),
    seeds: int = 20,
) -> Iterator[Power]:
    """Each fault in dumps of each size, over seeds, one after the other.

    Args:
        trials: of the faults.
        detectors: all that are run together.
        sizes: tokens.
        seeds: dumps of each size.
    """
    for trial in trials:
        yield _power(trial, detectors, tuple(sizes), seeds)


def _power(trial: Trial, detectors: Sequence[Detector], sizes: tuple[int, ...], seeds: int) -> Power:
    names = {
        size: [found(trial.make(seed, size), detectors, trial.known(seed)) for seed in range(seeds)] for size in sizes
    }
    largest = names[max(sizes)]
    beside = Counter(name for x in largest for name in x if name != trial.found_by)
    return Power(
        trial=trial,
        caught={size: sum(trial.found_by in x for x in told) / seeds for size, told in names.items()},
        first=sum(x[:1] == (trial.found_by,) for x in largest) / seeds,
        beside=dict(beside.most_common()),
    )


def table(powers: Sequence[Power], accused: Counter[str], clean: int) -> Table:
    """The self-test: a row a fault, with the false alarms of its detector."""
    sizes = sorted({size for p in powers for size in p.caught})
    columns = (
        Column(key="fault", title="fault put in"),
        Column(key="detector", title="found by"),
        Column(
            key="enough",
            title="caught from",
            unit="tokens",
            formula=f"in {CAUGHT:.0%} of the dumps of every larger size",
        ),
        *(Column(key=f"at_{n}", title=f"caught at {n}", unit="share of dumps") for n in sizes),
        Column(key="first", title="named first", unit="share of dumps"),
        Column(key="false_alarms", title="false alarms", unit="clean dumps"),
        Column(key="beside", title="also found"),
        Column(key="extra", title="what would show it"),
    )
    rows = tuple(_row(p, accused) for p in powers)
    return Table(
        name="self-test",
        title="What the detectors catch, from how many tokens on",
        columns=columns,
        rows=rows,
        note=f"Faults put into clean dumps; false alarms are counted over {clean} clean dumps.",
    )


def _row(p: Power, accused: Counter[str]) -> dict[str, Cell]:
    detector = p.trial.found_by
    return {
        "fault": p.trial.name,
        "detector": detector,
        "enough": p.enough if detector else None,
        **{f"at_{n}": share if detector else None for n, share in p.caught.items()},
        "first": p.first if detector else None,
        "false_alarms": accused[detector] if detector else None,
        "beside": ", ".join(f"{name} ({n})" for name, n in p.beside.items()),
        "extra": p.trial.extra,
    }
