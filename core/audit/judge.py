"""Judge: every detector over a stream of chunks, once, and what each finds at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from firstorder.core.errors import DataError
from firstorder.core.formats.chunk import Chunk

from .finding import Detector, Finding, Known, Sums, merged

Measure = Callable[[Chunk], Sums]


def judge_all(
    chunks: Iterable[Chunk], detectors: Sequence[Detector], known: Known | None = None
) -> tuple[tuple[Finding, ...], dict[str, tuple[str, ...]]]:
    """What the detectors find in a dump, in the order of the stages, and those that could say nothing.

    Detectors that share a `measure` share its sums.

    Args:
        chunks: of one dump, read once.
        detectors: in the order in which findings of one stage are told.
        known: of the run.

    Returns:
        The findings, and by the name of every silent detector the columns that no chunk had together.

    Raises:
        DataError: the routes of two chunks have different sizes.
    """
    known = Known() if known is None else known
    sums: dict[Measure, Sums] = {}
    sources: dict[Measure, list[tuple[str, ...]]] = {}
    lacking = {d.fault: d.needs for d in detectors}
    for chunk in chunks:
        names = tuple(sample.source for sample in chunk.samples)
        for measure in dict.fromkeys(d.measure for d in detectors if d.applies(chunk)):
            found = measure(chunk)
            sums[measure] = _add(sums[measure], found, names) if measure in sums else found
            sources.setdefault(measure, []).append(names)
        lacking |= {d.fault: _lacks(d, chunk, lacking[d.fault]) for d in detectors}
    findings = [
        _placed(found, sources[d.measure])
        for d in sorted(detectors, key=lambda d: d.stage)
        if d.measure in sums and not lacking[d.fault] and (found := d.judge(sums[d.measure], known)) is not None
    ]
    return tuple(findings), {fault: columns for fault, columns in lacking.items() if columns}


def _lacks(detector: Detector, chunk: Chunk, before: tuple[str, ...]) -> tuple[str, ...]:
    """The columns that a detector lacks in the chunk that has the most of them; nothing once it could speak."""
    here = tuple(name for name in detector.needs if getattr(chunk, name) is None)
    return min(before, here, key=len)


def _add(a: Sums, b: Sums, names: tuple[str, ...]) -> Sums:
    for name in a.keys() & b.keys():
        if a[name].shape[1:] != b[name].shape[1:] or a[name].ndim != b[name].ndim:
            raise DataError(
                f"{names[0]}: routes of {list(b[name].shape)} follow routes of {list(a[name].shape)} (`{name}`); "
                "audit dumps of two models apart"
            )
    return merged(a, b)


def _placed(finding: Finding, sources: list[tuple[str, ...]]) -> Finding:
    """A finding with the file and the row of its place."""
    if finding.place is None or finding.where is not None:
        return finding
    flat = [name for names in sources for name in names]
    return replace(finding, where=flat[finding.place])
