"""`firstorder validate`: the paper's claims with verdicts and numbers."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import typer

from firstorder.cli import output
from firstorder.cli.progress import shown

if TYPE_CHECKING:
    from firstorder.sim.claims import Budget, Claim

SCHEMA = "firstorder.validate/1"
STYLE = {"holds": "green", "fails": "bold red", "reproduced": "green", "not reproduced": "yellow"}


def validate(
    training: bool = typer.Option(False, "--training", help="The claims about training, on ensembles of runs."),
    quick: bool = typer.Option(False, "--quick", help="Fewer policies and draws: a first look."),
    only: list[str] = typer.Option([], "--only", metavar="ID", help="Settle this claim only; repeat for more."),
    expect: str | None = typer.Option(None, "--expect", metavar="FILE", help="Compare verdicts with a record."),
    json: str | None = typer.Option(None, "--json", metavar="FILE", help="Write JSON to FILE, or to stdout for -."),
    out: str | None = typer.Option(None, "--out", metavar="DIR", help="Keep the runs of --training, and go on there."),
) -> int:
    """Settle the paper's claims exactly: theorems must hold, empirical claims get a verdict."""
    from firstorder.core.errors import ConfigError

    output.check_target(json)
    expected = None if expect is None else read_record(Path(expect))
    if out is not None and not training:
        raise ConfigError("--out keeps the runs of --training; give both or neither")
    started = time.perf_counter()
    chosen = _chosen(only, training=training)
    with ExitStack() as stack, shown("validate"):
        budget = _budget(stack, out, training=training, quick=quick)
        if training:
            _train(budget)
        claims = settle(chosen, budget)
    document = {
        "schema": SCHEMA,
        "version": _versions(),
        "quick": quick,
        "training": training,
        "seconds": time.perf_counter() - started,
        "claims": claims,
    }
    differs = [] if expected is None else differences(expected, document)
    if json != "-":
        _show(document, differs)
    if json is not None:
        output.write_json(json, document)
    failed = any(claim["verdict"] == "fails" for claim in claims)
    return 1 if failed or differs else 0


def _budget(stack: ExitStack, out: str | None, *, training: bool, quick: bool) -> Budget:
    """What is spent; the runs of --training are kept in `out`, or in a folder that goes when they are judged."""
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
    stack.enter_context(reserve(owned, config, resume=owned.is_file()))
    return replace(budget, folder=folder)


def _train(budget: Budget) -> None:
    """Train the runs that are not there yet."""
    from firstorder.sim.sweep.plan import train
    from firstorder.sim.sweep.pool import open_executor
    from firstorder.sim.trials.runs import cells, publish

    assert budget.folder is not None
    wanted = list(cells(budget, publish(budget).numerics).values())
    missing = [cell for cell in wanted if not cell.finished(budget.folder)]
    if missing:
        train(missing, budget.folder, open_executor("local"))


def settle(claims: list[Claim], budget: Budget) -> list[dict[str, Any]]:
    """Check every claim."""
    from firstorder.core.progress import steps

    settled = []
    for claim in steps("claims", claims):
        started = time.perf_counter()
        outcome = claim.check(budget)
        settled.append(
            {
                "id": claim.id,
                "statement": claim.statement,
                "source": claim.source,
                "kind": claim.kind,
                "rule": claim.rule,
                "verdict": outcome.verdict,
                "headline": outcome.headline,
                "measured": outcome.measured,
                "seconds": time.perf_counter() - started,
            }
        )
    return settled


def read_record(path: Path) -> dict[str, Any]:
    """A document that an earlier `validate --json` wrote.

    Raises:
        ConfigError: not there, not JSON, or not such a document.
    """
    import json

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


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Verdicts of a run that differ from a record or are not in it, one line each."""
    before = {claim["id"]: claim["verdict"] for claim in expected["claims"]}
    after = {claim["id"]: claim["verdict"] for claim in found["claims"]}
    lines = [
        f"the record and this run differ in --{flag}"
        for flag in ("quick", "training")
        if expected.get(flag, False) != found.get(flag, False)
    ]
    for name, verdict in after.items():
        if name not in before:
            lines.append(f"{name}: {verdict}, not in the record")
        elif before[name] != verdict:
            lines.append(f"{name}: {verdict}, recorded {before[name]}")
    return lines


def cautions(document: dict[str, Any]) -> list[str]:
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


def _chosen(only: list[str], *, training: bool) -> list[Claim]:
    from firstorder.core.errors import ConfigError
    from firstorder.core.settings.toml import nearest
    from firstorder.sim.claims import CLAIMS
    from firstorder.sim.claims.training import TRAINING

    known = {claim.id: claim for claim in (TRAINING if training else CLAIMS)}
    for name in only:
        if name not in known:
            raise ConfigError(f"no claim {name!r}; {nearest(name, known)}claims: {', '.join(known)}")
    return [claim for name, claim in known.items() if not only or name in only]


def _versions() -> str:
    from firstorder import __version__

    return __version__


def _show(document: dict[str, Any], differs: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("claim", "kind", "verdict", "measured"):
        table.add_column(column, overflow="fold")
    for claim in document["claims"]:
        verdict = Text(claim["verdict"], style=STYLE.get(claim["verdict"], "cyan"))
        table.add_row(claim["id"], claim["kind"], verdict, claim["headline"])
    console = Console()
    console.print(table)
    counts: dict[str, int] = {}
    for claim in document["claims"]:
        counts[claim["verdict"]] = counts.get(claim["verdict"], 0) + 1
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    console.print(f"{summary}; {document['seconds']:.1f} s. Rules, intervals and all numbers: --json FILE")
    for line in cautions(document):
        console.print(line, style="yellow", highlight=False, soft_wrap=True)
    for line in differs:
        console.print(f"differs from the record: {line}", style="bold red", highlight=False)
