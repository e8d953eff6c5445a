"""Other frameworks' own code on the golden vectors."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .results import Result, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table
    from rich.text import Text

    from firstorder.backends.peers.compare import Outcome

SCHEMA = "firstorder.conformance-peers/1"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class PeersResult(Result):
    """Peers beside the golden vectors.

    Args:
        versions: of every peer that ran, by its name.
        outcomes: every row of `backends.peers.rows` on every case.
        seconds: by the clock, without making an environment.
    """

    versions: Mapping[str, str]
    outcomes: Sequence[Outcome]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether everything agrees, or differs, as it is known to."""
        return all(one.expected for one in self.outcomes)

    def blocks(self) -> Iterator[Table | Text]:
        """A line for each row; known differences with their reason; what was not expected."""
        from rich.table import Table
        from rich.text import Text

        from firstorder.backends.peers.rows import PINS

        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in ("peer", "row", "ours", "agree", "why not all"):
            table.add_column(column, overflow="fold")
        for row in self.document["rows"]:
            cases, known = row["cases"], list(dict.fromkeys(row["known"].values()))
            agree = sum(status == "agrees" for status in cases.values())
            table.add_row(row["peer"], row["row"], row["ours"], f"{agree}/{len(cases)}", "; ".join(known))
        yield table
        counts = Counter(one.status for one in self.outcomes)
        peers = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        yield Text(f"{peers}: {', '.join(f'{n} {status}' for status, n in counts.items())}; {self.seconds:.1f} s")
        for name, version in self.versions.items():
            if version != PINS[name]:
                yield Text(f"the rows of {name} were written for {PINS[name]}, this is {version}", style="yellow")
        for one in self.outcomes:
            if not one.expected:
                said = f"{one.row.peer}, {one.row.name}, {one.case}: {one.status} {one.detail}"
                yield Text(said.rstrip(), style="bold red")

    def records(self) -> list[dict[str, Any]]:
        """A row for each comparison and case."""
        return [
            {"peer": one.row.peer, "row": one.row.name, "ours": one.row.ours, "case": one.case, "status": one.status}
            for one in self.outcomes
        ]

    def plot(self) -> Figure:
        """The share of cases that agree, of every row."""
        require_matplotlib()
        from firstorder.cli.report.bars import Bar, bars

        shares = {
            f"{row['peer']}: {row['row']}": sum(s == "agrees" for s in row["cases"].values()) / len(row["cases"])
            for row in self.document["rows"]
        }
        return bars({"share of cases that agree": [Bar(label=name, value=share) for name, share in shares.items()]})


def conformance_peers(
    *, python: str | os.PathLike[str] | None = None, env: str | os.PathLike[str] | None = None
) -> PeersResult:
    """Call the losses, advantages and ratios of other frameworks on the golden vectors, and compare.

    Args:
        python: an interpreter that has them all.
        env: where to make an environment with them otherwise, or the one that was made there; a folder of the
            user's cache unless given. It takes about 2 GB and some minutes.

    Raises:
        ConfigError: the environment cannot be made, or a peer does not run in it.
    """
    from firstorder.backends.peers.compare import outcomes
    from firstorder.backends.peers.environment import answers, build, cache
    from firstorder.backends.peers.rows import ROWS
    from firstorder.core.conformance.shipped import shipped, source
    from firstorder.core.errors import ConfigError
    from firstorder.core.progress import steps

    if python is not None and env is not None:
        raise ConfigError("--python is an environment that there is, --env one to make; give one of the two")
    there = Path(python) if python is not None else build(Path(env) if env is not None else cache())
    started = time.perf_counter()
    said = {peer: answers(peer, there, source()) for peer in steps("peers", list(ROWS))}
    found = [one for peer, rows in ROWS.items() for one in outcomes(rows, said[peer]["rows"], shipped())]
    seconds = time.perf_counter() - started
    versions = {peer: said[peer]["version"] for peer in ROWS}
    return PeersResult(
        document=_document(found, said, seconds),
        versions=versions,
        outcomes=found,
        seconds=seconds,
    )


def _document(found: Sequence[Outcome], said: Mapping[str, Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    from datetime import date

    from firstorder import __version__
    from firstorder.core.conformance.shipped import shipped

    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one in found:
        head = {"peer": one.row.peer, "row": one.row.name, "ours": one.row.ours, "calls": one.row.calls}
        row = rows.setdefault((one.row.peer, one.row.name), {**head, "cases": {}, "known": {}, "details": {}})
        row["cases"][one.case] = one.status
        row["known"] |= {one.case: one.why} if one.why else {}
        row["details"] |= {one.case: one.detail} if one.detail else {}
    return {
        "schema": SCHEMA,
        "version": __version__,
        "seconds": seconds,
        "date": date.today().isoformat(),
        "vectors": shipped()["version"],
        "peers": {peer: {"version": each["version"], "torch": each["torch"]} for peer, each in said.items()},
        "as_expected": all(one.expected for one in found),
        "rows": list(rows.values()),
    }
