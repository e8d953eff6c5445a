"""Tables of docs/conformance.md: the cases, the names, and what the peers did by their record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from firstorder.core.conformance.additive import Term
from firstorder.core.conformance.additive import terms as terms_of_vectors
from firstorder.core.conformance.batches import CASES
from firstorder.core.conformance.terms import FRAMEWORKS, TERMS
from firstorder.core.conformance.vectors import CONVENTIONS
from tables import rows

RECORD = Path(__file__).parents[1] / "tests/records/peers.json"


def cases() -> str:
    """The batches of the vectors."""
    shown = ((f"`{case.name}`", f"{len(case.rows)} x {len(case.rows[0].mask)}", case.about) for case in CASES)
    return rows(("case", "responses x tokens", "about"), shown)


def added() -> str:
    """The terms of the vectors."""
    shown = (
        (
            f"`{term.name}`",
            f"`{term.kind}`",
            ", ".join(f"`{key} = {_toml(value)}`" for key, value in term.settings.items() if _matters(term, key)),
            ", ".join(f"`{name}` ({coefficient:g})" for name, coefficient in term.recipes.items()),
        )
        for term in terms_of_vectors()
    )
    return rows(("term", "key of `[terms]`", "settings", "recipes (coefficient)"), shown)


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else f"{value:g}"


def _matters(term: Term, key: str) -> bool:
    """Whether a key of a divisor is read by that divisor."""
    reads = {"aggregation.alpha": "length", "aggregation.constant": "constant"}
    return key not in reads or reads[key] == term.settings["aggregation.kind"]


def conventions() -> str:
    """What the words of the file mean."""
    return rows(("word", "meaning"), ((f"`{word}`", said) for word, said in CONVENTIONS.items()))


def terms() -> str:
    """One name, which formula, in which framework."""
    shown = (
        (
            term.name,
            term.here,
            *(term.elsewhere[name].says if name in term.elsewhere else "" for name in FRAMEWORKS),
        )
        for term in TERMS
    )
    return rows(("name", "here", *heads()), shown)


def heads() -> tuple[str, ...]:
    """The frameworks with the releases of the record."""
    peers = record()["peers"]
    return tuple(f"{name} {peers[name]['version']}" for name in FRAMEWORKS)


def record() -> dict[str, Any]:
    """What `firstorder conformance peers` wrote."""
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def peers() -> str:
    """How many cases agree, row by row, and why the others do not."""
    return rows(
        ("peer", "what is called", "held against", "cases that agree", "why not all"), map(_peer, record()["rows"])
    )


def _peer(row: dict[str, Any]) -> tuple[str, ...]:
    agree = sum(status == "agrees" for status in row["cases"].values())
    why = "; ".join(dict.fromkeys(row["known"].values()))
    return row["peer"], f"{row['row']}: {row['calls']}", f"`{row['ours']}`", f"{agree} of {len(row['cases'])}", why
