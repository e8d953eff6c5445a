"""The paper's claims with verdicts and numbers."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .results import Result, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table
    from rich.text import Text

    from firstorder.sim.claims import Budget, Claim
    from firstorder.sim.claims.settle import Settled

SCHEMA = "firstorder.validate/1"
STYLE = {"holds": "green", "fails": "bold red", "reproduced": "green", "not reproduced": "yellow"}


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ValidateResult(Result):
    """Claims with their outcomes.

    Args:
        claims: by id, each with its verdict, its headline and all that was measured.
        differences: how the verdicts differ from the record that was expected, a line each.
        seconds: by the clock.
    """

    claims: Mapping[str, Settled]
    differences: Sequence[str]
    seconds: float

    @property
    def verdicts(self) -> dict[str, str]:
        """The verdict of every claim, by id."""
        return {name: each.outcome.verdict for name, each in self.claims.items()}

    @property
    def passed(self) -> bool:
        """Whether every theorem holds and nothing differs from the record that was expected."""
        return "fails" not in self.verdicts.values() and not self.differences

    def blocks(self) -> Iterator[Table | Text]:
        """The table, how often each verdict, cautions, and what differs from the record."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in ("claim", "kind", "verdict", "measured"):
            table.add_column(column, overflow="fold")
        for row in self.records():
            verdict = Text(row["verdict"], style=STYLE.get(row["verdict"], "cyan"))
            table.add_row(row["claim"], row["kind"], verdict, row["headline"])
        yield table
        counts = ", ".join(f"{count} {verdict}" for verdict, count in Counter(self.verdicts.values()).items())
        yield Text(f"{counts}; {self.seconds:.1f} s. Rules, intervals and all numbers: --json FILE")
        yield from (Text(line, style="yellow", no_wrap=True) for line in cautions(self.document))
        yield from (Text(f"differs from the record: {line}", style="bold red") for line in self.differences)

    def records(self) -> list[dict[str, Any]]:
        """A row for each claim: its id, kind and statement, the verdict, the headline, seconds."""
        return [
            {
                "claim": name,
                "kind": each.claim.kind,
                "verdict": each.outcome.verdict,
                "headline": each.outcome.headline,
                "statement": each.claim.statement,
                "seconds": each.seconds,
            }
            for name, each in self.claims.items()
        ]

    def plot(self) -> Figure:
        """Every claim under its verdict, with what was measured beside it."""
        require_matplotlib()
        from firstorder.cli.report.verdicts import verdicts

        return verdicts({row["claim"]: (row["verdict"], row["headline"]) for row in self.records()})


def validate(
    *,
    only: Sequence[str] = (),
    training: bool = False,
    quick: bool = False,
    expect: str | os.PathLike[str] | ValidateResult | None = None,
    out: str | os.PathLike[str] | None = None,
) -> ValidateResult:
    """Settle the paper's claims exactly: theorems must hold, empirical claims get a verdict.

    Args:
        only: ids of claims; all unless given.
        training: the claims about training, on ensembles of runs.
        quick: fewer policies and draws: a first look.
        expect: an earlier result, or the file of one, whose verdicts are compared with these.
        out: a folder that keeps the runs of `training` and the verdicts; another call goes on there.

    Raises:
        ConfigError: an unknown claim, a record that cannot be read, or a folder of other runs.
    """
    from firstorder.core.errors import ConfigError

    expected = expect.document if isinstance(expect, ValidateResult) else expect and read_record(Path(expect))
    if out is not None and not training:
        raise ConfigError("--out keeps the runs of --training; give both or neither")
    from firstorder import __version__
    from firstorder.cli.report.claimed import keep
    from firstorder.sim.claims.settle import here, settle

    started = time.perf_counter()
    chosen = _chosen(only, training=training)
    with ExitStack() as stack:
        budget = _budget(stack, out, training=training, quick=quick)
        claims = (here if training else settle)(chosen, budget)  # those about training share runs, and processes
        if out is not None:
            keep(Path(out), [each.json() for each in claims])
    seconds = time.perf_counter() - started
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "quick": quick,
        "training": training,
        "seconds": seconds,
        "claims": [each.json() for each in claims],
    }
    return ValidateResult(
        document=document,
        claims={each.claim.id: each for each in claims},
        differences=differences(expected, document) if expected else [],
        seconds=seconds,
    )


def _budget(stack: ExitStack, out: str | os.PathLike[str] | None, *, training: bool, quick: bool) -> Budget:
    """What is spent; the runs of `training` are kept in `out`, or in a folder that goes when they are judged."""
    from firstorder.core.runs.folder import reserve
    from firstorder.sim.claims import FULL, QUICK
    from firstorder.sim.claims.training import TRAINING_FULL, TRAINING_QUICK
    from firstorder.sim.trials.runs import cells, publish

    if not training:
        return QUICK if quick else FULL
    budget = TRAINING_QUICK if quick else TRAINING_FULL
    folder = Path(out).resolve() if out else Path(stack.enter_context(TemporaryDirectory()))
    owned = folder / "claims.toml"
    wanted = cells(budget, publish(budget).numerics).values()
    config = {cell.name: cell.settings() for cell in wanted}
    stack.enter_context(reserve(owned, config, resume=owned.is_file(), resolved=_resolved))
    return replace(budget, folder=folder)


def _resolved(stored: dict[str, Any]) -> dict[str, Any]:
    """The cells of a folder with the keys of today."""
    from firstorder.core.method.stored import resolved_each
    from firstorder.sim.training.session import resolved_run

    return resolved_each(stored, resolved_run)


def read_record(path: Path) -> dict[str, Any]:
    """A document that an earlier `validate --json` wrote.

    Raises:
        ConfigError: not there, not JSON, or not such a document.
    """
    from firstorder.core.errors import ConfigError

    try:
        if path.exists() and not path.is_file():  # a device is read without end, until the memory is full
            raise OSError("not a file")
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--expect {path} cannot be read ({error}); give a file of `validate --json`") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ConfigError(f"--expect {path} is not a record of `validate --json` (schema {SCHEMA})")
    return record


def differences(expected: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    """Verdicts of a run that differ from a record or are not in it, one line each."""
    before = {claim["id"]: claim["verdict"] for claim in expected["claims"]}
    after = {claim["id"]: claim["verdict"] for claim in document["claims"]}
    lines = [
        f"the record and this run differ in --{flag}"
        for flag in ("quick", "training")
        if expected.get(flag, False) != document.get(flag, False)
    ]
    for name, verdict in after.items():
        if name not in before:
            lines.append(f"{name}: {verdict}, not in the record")
        elif before[name] != verdict:
            lines.append(f"{name}: {verdict}, recorded {before[name]}")
    return lines


def cautions(document: Mapping[str, Any]) -> list[str]:
    """What must be said beside verdicts of --quick: those over members whose routes flip rest on few of them."""
    if not document["quick"]:
        return []
    return [
        f"{claim['id']}: {claim['verdict']} on a first look, in which "
        f"{claim['measured']['members_with_flips'][-1]:.0%} of the members flip at the smallest scale; "
        "settle it without --quick"
        for claim in document["claims"]
        if claim["id"].startswith("flips-")
    ]


def _chosen(only: Sequence[str], *, training: bool) -> list[Claim]:
    from firstorder.core.errors import ConfigError
    from firstorder.core.settings.toml import nearest
    from firstorder.sim.claims import CLAIMS
    from firstorder.sim.claims.training import TRAINING

    known = {claim.id: claim for claim in (TRAINING if training else CLAIMS)}
    for name in only:
        if name not in known:
            raise ConfigError(f"no claim {name!r}; {nearest(name, known)}claims: {', '.join(known)}")
    return [claim for name, claim in known.items() if not only or name in only]
