"""Tables of the verdicts in tests/records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tables

RECORDS = Path(__file__).parents[1] / "tests/records"
STATES = {True: "holds", False: "contradicted", None: "open"}


def record(name: str) -> list[dict[str, Any]]:
    """The claims of a record."""
    claims: list[dict[str, Any]] = json.loads((RECORDS / f"{name}.json").read_text())["claims"]
    return claims


def verdicts(name: str) -> str:
    """Every claim of a record with its verdict."""
    return tables.rows(
        ("claim", "kind", "verdict", "measured"),
        ((f"[`{c['id']}`](claims/{c['id']}.md)", c["kind"], c["verdict"], c["headline"]) for c in record(name)),
    )


def conditions(name: str) -> str:
    """Where each finding holds: a row a condition, a column a claim that was settled in conditions."""
    claims = {c["id"]: c["measured"]["conditions"] for c in record(name) if "conditions" in c["measured"]}
    places = dict.fromkeys(place for judged in claims.values() for place in judged)
    return tables.rows(
        ("condition", *(f"`{claim}`" for claim in claims)),
        ((f"`{p}`", *(STATES[j[p]["holds"]] if p in j else "" for j in claims.values())) for p in places),
    )
