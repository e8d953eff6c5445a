"""The verdicts in a folder of training claims: `claims.json`, the claims that were settled on its runs so far."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstorder.core.errors import ConfigError
from firstorder.core.runs.files import to_json, write_whole

from . import kit

NAME = "claims.json"
READS = {"training-discrepancy": ("kl", "route/flip_rate"), "training-bias-coherence": ("exact/bias_coherence",)}
HOLDS = {True: "holds", False: "contradicted", None: "open"}
BAD = ("fails", "not reproduced")
AGAIN = "firstorder validate --training --out, with this folder, settles claims on the runs that it has"


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A claim with its verdict, as `firstorder validate --json` has it.

    Args:
        id: its name.
        statement: what is claimed.
        rule: by which it is settled.
        verdict: how it ended.
        headline: what was measured, in a phrase.
        conditions: where it was settled condition by condition, in words whether it holds in each; with the recipes.
    """

    id: str
    statement: str
    rule: str
    verdict: str
    headline: str
    conditions: Mapping[str, tuple[str, tuple[str, ...]]]

    @property
    def reads(self) -> tuple[str, ...]:
        """The logged quantities that it is settled on."""
        return READS.get(self.id, ("exact/j_pi",))


def keep(folder: Path, claims: Sequence[Mapping[str, Any]]) -> None:
    """Add settled claims to those of the folder; one that is settled again replaces itself."""
    file = folder / NAME
    known = {claim["id"]: claim for claim in (*_read(file), *claims)}
    write_whole(file, to_json({"claims": list(known.values())}))


def read(folder: Path) -> list[Settled]:
    """The claims that were settled on the runs of a folder, none where none was yet.

    Raises:
        ConfigError: the file cannot be read.
    """
    file = folder / NAME
    try:
        return [_settled(claim) for claim in _read(file)]
    except (KeyError, TypeError, AttributeError):
        raise _damaged(file) from None


def verdicts(claims: Sequence[Settled], figures: Sequence[str]) -> str:
    """The box and the table on top of the page, as HTML; `figures` are the names of those that are drawn."""
    if not claims:
        return kit.note(f"No claim is settled here yet: {AGAIN}.")
    counts = Counter(claim.verdict for claim in claims)
    words = "; ".join(f"{count} of {len(claims)} {verdict}" for verdict, count in counts.items())
    bad = any(claim.verdict in BAD for claim in claims)
    box = f'<div class="verdict{" fault" if bad else ""}"><p><strong>{kit.text(words)}</strong></p></div>'
    rows = [[claim.id, claim.verdict, claim.headline, claim.statement] for claim in claims]
    links = " · ".join(kit.link(f"#{claim.id}", claim.id) for claim in claims if claim.id in figures)
    return f"{box}\n{kit.table(('claim', 'verdict', 'measured', 'statement'), rows, 'verdicts', links)}"


def beside(claim: Settled) -> str:
    """What stands beside the figure of a claim, as HTML."""
    line = f"<strong>{kit.text(claim.verdict)}</strong>: {kit.text(claim.headline)}"
    return f"<p>{line}</p>\n<p>{kit.text(claim.statement)}</p>\n{kit.note(f'Rule: {claim.rule}.')}"


def read_here(claims: Sequence[Settled], quantity: str) -> str:
    """The verdicts that rest on a quantity, as HTML."""
    return kit.listed(f"{claim.id}: {claim.verdict}; {claim.headline}" for claim in claims if quantity in claim.reads)


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(file.read_text(encoding="utf-8"))["claims"]) if file.is_file() else []
    except (OSError, ValueError, KeyError, TypeError):
        raise _damaged(file) from None


def _damaged(file: Path) -> ConfigError:
    return ConfigError(f"{file} is damaged; remove it: {AGAIN}")


def _settled(claim: Mapping[str, Any]) -> Settled:
    conditions = claim["measured"].get("conditions", {})
    words = {name: (HOLDS[each.get("holds")], tuple(each.get("recipes", ()))) for name, each in conditions.items()}
    parts = {key: str(claim[key]) for key in ("id", "statement", "rule", "verdict", "headline")}
    return Settled(conditions=words, **parts)
