"""Tables of the page on audits: formats, detectors, and the record of the self-test."""

from __future__ import annotations

import json
import math
from pathlib import Path

from firstorder.core.audit.auditor import detectors as all_detectors
from firstorder.core.formats.registry import FORMATS
from tables import rows

RECORD = Path(__file__).parents[1] / "tests/records/self-test.json"
STAGES = {1: "can it be read", 2: "is it aligned", 3: "columns", 4: "routes", 5: "what was sampled", 6: "how much"}


def formats() -> str:
    """Whose dumps are read, and by which conventions."""
    return rows(
        ("`--format`", "whose", "read by"),
        ((f"`{each.name}`", each.title, "; ".join(each.conventions)) for each in FORMATS.values()),
    )


def detectors() -> str:
    """What is looked for, in the order of the questions."""
    every = sorted(all_detectors(lambda kl: math.inf), key=lambda each: each.stage)
    return rows(
        ("question", "fault", "needs", "rule"),
        ((STAGES[each.stage], each.fault, ", ".join(f"`{name}`" for name in each.needs), each.rule) for each in every),
    )


def caught() -> str:
    """The record of `firstorder audit --self-test`: a row a fault."""
    table = json.loads(RECORD.read_text())["result"]
    accused = ", ".join(f"{name} {count}" for name, count in table["accused"].items())
    missed = ", ".join(table["missed"])
    said = (
        f"False alarms on {table['clean']:,} clean dumps of 10,000 tokens: {accused or 'none'}. Not caught in each of "
        f"{table['seeds']} dumps of 10,000 tokens, though every such dump shows it: {missed or 'none'}.\n\n"
    )
    return said + rows(
        ("fault put in", "found by", "caught from", "what would show it"),
        (
            (
                row["fault"],
                row["detector"] or "not in a dump",
                "" if row["enough"] is None else f"{row['enough']:,} tokens",
                row["extra"] or "",
            )
            for row in table["rows"]
        ),
    )
