"""The page of results: each finding with its number, its table, and where its numbers come from; and how to cite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import answers
import claimed
import findings
import results
import tables
from findings import ORDERS, PARTS, RECIPES, Cells


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A section of the page.

    Args:
        title: of its row in the table of all.
        heads, cells: its table.
        claims, studies: what its numbers come from.
        main: the number that is told of it in the table of all.
    """

    title: str
    heads: tuple[str, ...]
    cells: Callable[[], Cells]
    main: Callable[[], str]
    claims: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()


FINDINGS: Mapping[str, Finding] = {
    "orders": Finding(
        title="Orders of the error",
        heads=("error", "replay", "order", "verdict"),
        cells=findings.orders,
        main=findings.orders_main,
        claims=tuple(ORDERS),
    ),
    "replay": Finding(
        title="What replay brings and costs",
        heads=("world", "updates before", "replay", *PARTS[:-1], "altered target", "in all"),
        cells=findings.replay,
        main=findings.replay_main,
        claims=("split", "table-1"),
        studies=("replay",),
    ),
    "crossover": Finding(
        title="R2 against R3 as the target grows stale",
        heads=("staleness", "error, no replay", "R2", "R3", "R3 - R2"),
        cells=findings.crossover,
        main=findings.last_crossover,
        claims=("r2-r3-crossover",),
    ),
    "disagreement": Finding(
        title="Disagreement with the paper",
        heads=("T", "N", "the paper", "cosine, R2", "cosine, R3", "R2 - R3", "in standard errors"),
        cells=findings.paper,
        main=findings.paper_main,
        studies=("map",),
    ),
    "bounds": Finding(
        title="Tightness of the bounds",
        heads=("bounds on", "hold", "sharp", "largest median share, T = 5", "smallest median, T = 32,768"),
        cells=findings.bounds,
        main=findings.bounds_main,
        claims=("bounds",),
        studies=("bounds",),
    ),
    "frontier": Finding(
        title="Bias against variance",
        heads=("condition", *(f"`{recipe}`" for recipe in RECIPES)),
        cells=findings.frontier,
        main=findings.frontier_main,
        studies=("frontier",),
    ),
    "importance": Finding(
        title="Without importance sampling",
        heads=("claim", "condition", "lead of MiniRL", "share of seeds that collapse without"),
        cells=findings.importance,
        main=findings.importance_main,
        claims=("no-is-one-step", "training-no-is", "training-long-is", "training-long-no-is"),
    ),
    "lengths": Finding(
        title="Where importance sampling begins to matter",
        heads=("finding", "KL, nats a token", "not at", "at"),
        cells=findings.regimes,
        main=findings.regimes_main,
        studies=("regimes",),
    ),
    "causes": Finding(
        title="Causes of a collapse",
        heads=("claimed cause", "cause", "in part", "not", "open"),
        cells=findings.causes,
        main=lambda: (answers.record("causes") or {})["headline"],
        studies=("causes",),
    ),
    "warnings": Finding(
        title="Early warnings",
        heads=("reading", "AUC", "collapses warned of", "false alarms", "updates ahead"),
        cells=findings.warnings,
        main=lambda: (answers.record("warnings") or {})["headline"],
        studies=("warnings",),
    ),
    "normalisation": Finding(
        title="Length normalisation",
        heads=("claim", "condition", "lead of MiniRL", "share of seeds that collapse with it"),
        cells=findings.norm,
        main=findings.norm_main,
        claims=("length-norm-floor", "training-length-norm", "training-long-length-norm"),
    ),
    "clip": Finding(
        title="The clip",
        heads=("claim and condition", "compared", "value"),
        cells=findings.clip,
        main=findings.clip_main,
        claims=("mask-cost", "truncation-cost", "training-stale", "training-long-off-policy"),
    ),
    "samples": Finding(
        title="The border on sampled updates",
        heads=("T", "lead of MiniRL", "above 0.05"),
        cells=findings.samples,
        main=lambda: (answers.record("samples") or {})["headline"],
        studies=("samples",),
    ),
}


def found(name: str) -> str:
    """The table of a finding, and below it where its numbers come from."""
    finding = FINDINGS[name]
    return "\n\n".join((tables.rows(finding.heads, finding.cells()), _sources(finding)))


def _sources(finding: Finding) -> str:
    told = [claimed.source(name) for name in finding.claims]
    for name in finding.studies:
        record = answers.record(name)
        assert record is not None
        told.append(
            claimed.Source(
                name=f"[`{name}`](studies.md#{name})",
                command=f"firstorder study {name}",
                seeds=_span(record),
                record=f"studies/{name}.json",
                version=record["version"],
            )
        )
    heads = ("from", "command", "seeds", "record in `tests/records`", "made by")
    return tables.rows(heads, ((s.name, f"`{s.command}`", s.seeds, f"`{s.record}`", s.version) for s in told))


def _span(record: Mapping[str, Any]) -> str:
    """The policies of a study; a study may have some of its own."""
    measured = record["measured"]
    seeds = measured.get("map", measured).get("seeds") or record["seeds"]
    return f"{min(seeds)} to {max(seeds)}"


def every() -> str:
    """Each finding with its number, and where it stands."""
    return tables.rows(
        ("finding", "what was found"),
        ((f"[{finding.title}](#{name})", finding.main()) for name, finding in FINDINGS.items()),
    )


def unsettled(verdict: str) -> str:
    """The claims that came to a verdict: `not-reproduced` or `inconclusive`."""
    wanted = verdict.replace("-", " ")
    every = (claim for record in ("validate", "training") for claim in results.record(record))
    told = (
        (f"[`{c['id']}`](claims/{c['id']}.md)", claimed.sentence(c["statement"], c["kind"]), c["headline"])
        for c in every
        if c["verdict"] == wanted
    )
    return tables.rows(("claim", "states", "measured"), told)


def bibtex() -> str:
    """The entries of CITATION.cff."""
    import yaml

    cited = yaml.safe_load((results.RECORDS.parents[1] / "CITATION.cff").read_text())
    (paper,) = cited["references"]
    names = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"])
    (arxiv,) = (one["value"].removeprefix("arXiv:") for one in paper["identifiers"])
    author = cited["authors"][0]["name"]
    lines = (
        "```bibtex",
        "@software{firstorder,",
        f"  title = {{{cited['title']}}},",
        f"  author = {{{{{author}}}}},",
        f"  version = {{{cited['version']}}},",
        f"  license = {{{cited['license']}}}",
        "}",
        "",
        "@article{zheng2025stabilizing,",
        f"  title = {{{paper['title']}}},",
        f"  author = {{{names}}},",
        f"  journal = {{arXiv preprint arXiv:{arxiv}}},",
        f"  year = {{{paper['year']}}}",
        "}",
        "```",
    )
    return "\n".join(lines)
