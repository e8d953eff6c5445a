"""Report: all that an audit says of a dump."""

from __future__ import annotations

from dataclasses import dataclass

from .finding import Finding
from .table import Table


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One paragraph, and whether the dump is normal.

    Args:
        fault: the one that explains the most, None where the dump is normal.
        paragraph: for people, with the figures that decided.
        questions: the two to ask next.
    """

    fault: str | None
    paragraph: str
    questions: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class View:
    """A stretch of one response for the token viewer; what the dump does not hold is None.

    Args:
        source: the file and the row.
        step: its global step.
        first: the position of the first token shown.
        why: why it is shown: `largest |sum D|`.
        tokens: ids `[n]`, and `texts` where a tokenizer was given.
        mask: `[n]`.
        logp_mu, logp_old: nats `[n]`, NaN where there is none.
        routes, routes_old: `[n][M][K]`, the rows that produced the tokens: that of token t is row t - 1.
    """

    source: str
    step: int
    first: int
    why: str
    tokens: tuple[int, ...]
    mask: tuple[bool, ...]
    logp_mu: tuple[float, ...] | None
    logp_old: tuple[float, ...] | None
    routes: tuple[tuple[tuple[int, ...], ...], ...] | None = None
    routes_old: tuple[tuple[tuple[int, ...], ...], ...] | None = None
    texts: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """An audit.

    Args:
        format: what was read.
        inferred: what was decided about alignment, fills and layers, a sentence each.
        counts: files, steps, responses, tokens, unusable tokens.
        verdict: in one paragraph.
        findings: every fault that was found, in the order of the questions.
        silent: detectors that could say nothing, with the columns they lack.
        tables: the numbers.
        views: responses that matter most, the worst first.
    """

    format: str
    inferred: tuple[str, ...]
    counts: dict[str, int]
    verdict: Verdict
    findings: tuple[Finding, ...]
    silent: dict[str, tuple[str, ...]]
    tables: tuple[Table, ...]
    views: tuple[View, ...]
