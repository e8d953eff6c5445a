"""Power: which detector catches which fault from how many tokens on, and what clean dumps are accused of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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


@dataclass(frozen=True, kw_only=True)
class Power:
    """How a fault fares.

    Args:
        fault: that was put in.
        caught: by the tokens of a dump, the share of seeds in which its detector found it.
        first: the share, at the largest size, in which it was also the first finding.
        beside: what else was found at the largest size, and in how many seeds.
    """

    fault: Fault
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
    return Counter(fault for samples in dumps for fault in found(samples, detectors, known))


def possible(samples: Iterable[Sample], fault: Fault) -> bool:
    """Whether samples have what a fault changes."""
    return all(getattr(sample, name) is not None for sample in samples for name in fault.needs)


def power(
    dump: Dump,
    faults: Sequence[Fault],
    detectors: Sequence[Detector],
    *,
    sizes: Sequence[int] = (300, 1000, 3000, 10000),
    seeds: int = 20,
    known: Known | None = None,
) -> tuple[Power, ...]:
    """Each fault in dumps of each size, over seeds.

    Args:
        dump: makes clean ones.
        faults: to put in; of one that the samples lack the columns for, nothing is known.
        detectors: all that are run together.
        sizes: tokens.
        seeds: dumps of each size.
        known: of the run.
    """
    return tuple(_power(dump, fault, detectors, tuple(sizes), seeds, known) for fault in faults)


def _power(
    dump: Dump, fault: Fault, detectors: Sequence[Detector], sizes: tuple[int, ...], seeds: int, known: Known | None
) -> Power:
    caught: dict[int, float] = {}
    names: list[tuple[str, ...]] = []
    for size in sizes if possible(dump(0, sizes[0]), fault) else ():
        names = [
            found(fault.inject(dump(seed, size), torch.Generator().manual_seed(seed)), detectors, known)
            for seed in range(seeds)
        ]
        caught[size] = sum(fault.found_by in x for x in names) / seeds
    beside = Counter(name for x in names for name in x if name != fault.found_by)
    return Power(
        fault=fault,
        caught=caught,
        first=sum(x[:1] == (fault.found_by,) for x in names) / max(len(names), 1),
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
    detector = p.fault.found_by
    return {
        "fault": p.fault.name,
        "detector": detector,
        "enough": p.enough if detector else None,
        **{f"at_{n}": share if detector else None for n, share in p.caught.items()},
        "first": p.first if detector else None,
        "false_alarms": accused[detector] if detector else None,
        "beside": ", ".join(f"{name} ({n})" for name, n in p.beside.items()),
        "extra": p.fault.extra,
    }
