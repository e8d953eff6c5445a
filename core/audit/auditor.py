"""An audit: the chunks of a dump pass the numbers, the detectors and the choice of what to show, once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from firstorder.core.errors import DataError
from firstorder.core.formats.chunk import Chunk, chunks
from firstorder.core.formats.registry import Dump
from firstorder.core.formats.sample import Sample
from firstorder.core.progress import tell

from . import distribution, readings, routers, size, staleness, structure, unrelated
from .fills import dense_of
from .finding import Detector, Finding, Known, Sums
from .judge import collect, judged
from .report import Report
from .route_fills import fill_sums
from .size import Border
from .table import Table
from .tally import Tally, merged, tally
from .verdict import verdict
from .views import Views

DETECTORS = (
    *structure.DETECTORS,
    distribution.TRUNCATION,
    distribution.UNRECORDED,
    distribution.TEMPERATURE,
    distribution.BLIND_TEMPERATURE,
    staleness.STALE,
    staleness.OTHER_RATIO,
    routers.UNREPLAYED,
    routers.PRECISION,
    size.PRECISION,
    *unrelated.DETECTORS,
)
"""All that need no more than a dump, in the order of the questions."""
LACKING = {"logp_mu": "log-probs of the rollout engine", "logp_old": "log-probs of the trainer"}


@dataclass(frozen=True, kw_only=True)
class Passed:
    """What chunks have left behind.

    Args:
        tally: their numbers.
        findings: the faults that they show, in the order of the questions.
        silent: detectors that could say nothing, with the columns they lack.
        dense: layers whose rows are one and the same throughout, as those of dense layers are.
        sizes: the sums of `size.terms`, empty where no chunk has both log-probs.
    """

    tally: Tally
    findings: tuple[Finding, ...]
    silent: dict[str, tuple[str, ...]]
    dense: tuple[int, ...]
    sizes: Sums


def audit(dump: Dump, known: Known, border: Border, texts: Callable[[int], str] | None = None) -> Report:
    """All that can be said of a dump.

    Args:
        dump: opened.
        known: of its run.
        border: from which length on training without importance sampling collapses, by discrepancy.
        texts: the text of a token by its id, where a tokenizer is at hand.

    Raises:
        DataError: a file cannot be read, or the dump holds no responses.
    """
    noted, shown = Notes(), Views()

    def see(chunk: Chunk) -> None:
        nonlocal shown
        shown = shown.add(chunk)

    passed = passing(noted.taken(dump.samples()), known, detectors(border), see)
    counts = {"files": len(dump.files), "steps": len(passed.tally.lines()), **passed.tally.counts}
    lacking = [what for name, what in LACKING.items() if name not in noted.columns]
    return Report(
        format=dump.format.title,
        inferred=(*dump.format.conventions, *_dense(passed.dense), *noted.sentences(), *_skipped(dump)),
        counts=counts,
        verdict=verdict(passed.findings, counts, lacking, _normal(passed.sizes, known, border)),
        findings=passed.findings,
        silent=passed.silent,
        tables=(*passed.tally.tables(known.minibatches or 1), *_readings(passed.sizes)),
        views=shown.shown(texts),
    )


def _normal(sizes: Sums, known: Known, border: Border) -> str:
    return size.normal(sizes, known, border) if sizes else ""


def _readings(sizes: Sums) -> tuple[Table, ...]:
    return (readings.compared_with(size.size(sizes)),) if sizes else ()


def detectors(border: Border) -> tuple[Detector, ...]:
    """All detectors: those that need no more than a dump, and the one that needs the border of the studies."""
    return (*DETECTORS, size.large_for_length(border))


def passing(
    samples: Iterable[Sample], known: Known, looking: Sequence[Detector], see: Callable[[Chunk], None]
) -> Passed:
    """Samples past the numbers and the detectors, each read once.

    Args:
        samples: of one dump, or of a part of it.
        known: of its run.
        looking: the detectors.
        see: is shown every chunk as well.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    total: Tally | None = None

    def watched() -> Iterator[Chunk]:
        nonlocal total
        seen = 0
        for chunk in chunks(samples):
            own = tally(chunk)
            total = own if total is None else merged(total, own)
            see(chunk)
            seen += len(chunk.samples)
            tell("responses", seen, seen + 1, chunk.samples[-1].source)
            yield chunk

    collected = collect(watched(), looking)
    if total is None:
        raise DataError("the dump holds no responses; give the dump of a run that has sampled some")
    return Passed(
        tally=total,
        findings=judged(collected, looking, known),
        silent=dict(collected.silent),
        dense=dense_of(collected.sums.get(fill_sums, {})),
        sizes=collected.sums.get(size.terms, {}),
    )


class Notes:
    """What the readers met, added up over samples, and the columns that some sample had."""

    def __init__(self) -> None:
        self.columns: set[str] = set()
        self.counts: dict[str, int] = {}

    def taken(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples, each noted as it passes."""
        for sample in samples:
            self.columns |= {name for name in LACKING if getattr(sample, name) is not None}
            for name, count in sample.notes.items():
                self.counts[name] = self.counts.get(name, 0) + count
            yield sample

    def sentences(self) -> tuple[str, ...]:
        """Each with how often it was met."""
        return tuple(f"{name}: {count:,}" for name, count in self.counts.items() if count)


def _dense(layers: tuple[int, ...]) -> tuple[str, ...]:
    if not layers:
        return ()
    names = ", ".join(map(str, layers))
    return (f"layers {names} route nothing and are taken to be dense; --layers names those that route",)


def _skipped(dump: Dump) -> tuple[str, ...]:
    if not dump.skipped:
        return ()
    return (f"{dump.skipped:,} other {'file lies' if dump.skipped == 1 else 'files lie'} beside the dump, unread",)
