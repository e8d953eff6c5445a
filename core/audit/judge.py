"""Judge: every detector over a stream of chunks, once, and what each finds at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from firstorder.core.errors import DataError
from firstorder.core.formats.chunk import Chunk

from .finding import EACH, Detector, Finding, Known, Sums, merged

Measure = Callable[[Chunk], Sums]
Judged = tuple[tuple[Finding, ...], dict[str, tuple[str, ...]]]


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a dump adds up to.

    Args:
        sums: of every measure; detectors that share one share its sums.
        sources: by measure, those of the responses of every chunk that it saw, in the order of reading.
        silent: by the name of every detector that no chunk had the columns for, those that it lacked.
    """

    sums: Mapping[Measure, Sums]
    sources: Mapping[Measure, Sequence[tuple[str, ...]]]
    silent: Mapping[str, tuple[str, ...]]


def judge_all(chunks: Iterable[Chunk], detectors: Sequence[Detector], known: Known | None = None) -> Judged:
    """What the detectors find in a dump, and those that could say nothing.

    Args:
        chunks: of one dump, read once.
        detectors: in the order in which findings of one stage are told.
        known: of the run.

    Returns:
        The findings by stage, and by the name of every silent detector the columns that it lacked.

    Raises:
        DataError: the routes of two chunks have different sizes.
    """
    collected = collect(chunks, detectors)
    return judged(collected, detectors, known), dict(collected.silent)


def collect(chunks: Iterable[Chunk], detectors: Sequence[Detector]) -> Collected:
    """The sums of all detectors over a stream of chunks.

    Raises:
        DataError: the routes of two chunks have different sizes.
    """
    sums: dict[Measure, Sums] = {}
    sources: dict[Measure, list[tuple[str, ...]]] = {}
    lacking = {d.fault: d.needs for d in detectors}
    for chunk in chunks:
        names = tuple(sample.source for sample in chunk.samples)
        for measure in dict.fromkeys(d.measure for d in detectors if d.applies(chunk)):
            more = measure(chunk)
            sums[measure] = _added(sums[measure], more, names) if measure in sums else more
            sources.setdefault(measure, []).append(names)
        lacking |= {d.fault: _fewer(d, chunk, lacking[d.fault]) for d in detectors if lacking[d.fault]}
    silent = {fault: columns for fault, columns in lacking.items() if columns}
    return Collected(sums=sums, sources=sources, silent=silent)


def judged(collected: Collected, detectors: Sequence[Detector], known: Known | None = None) -> tuple[Finding, ...]:
    """The findings by stage, each with the file and the row of its place."""
    known = Known() if known is None else known
    speaking = [d for d in detectors if d.measure in collected.sums and d.fault not in collected.silent]
    told = ((d.measure, d.judge(collected.sums[d.measure], known)) for d in sorted(speaking, key=lambda d: d.stage))
    return tuple(_placed(found, collected.sources[measure]) for measure, found in told if found is not None)


def _fewer(detector: Detector, chunk: Chunk, before: tuple[str, ...]) -> tuple[str, ...]:
    """What a detector lacks in the chunk that has the most of it."""
    return min(before, tuple(name for name in detector.needs if getattr(chunk, name) is None), key=len)


def _added(a: Sums, b: Sums, names: tuple[str, ...]) -> Sums:
    for name in a.keys() & b.keys():
        kept = int(name.startswith(EACH))
        if a[name].shape[kept:] != b[name].shape[kept:]:
            raise DataError(
                f"{names[0]}: routes of other sizes than before (`{name}` {list(b[name].shape)} after "
                f"{list(a[name].shape)}); audit the dumps of two models apart"
            )
    return merged(a, b)


def _placed(finding: Finding, sources: Sequence[tuple[str, ...]]) -> Finding:
    if finding.place is None:
        return finding
    return replace(finding, where=list(chain.from_iterable(sources))[finding.place])
