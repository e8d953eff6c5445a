"""A picture of every study that has a record in tests/records/studies, and its rows beside.

A picture says which record it was drawn from, which a test compares.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import matplotlib

import results
from firstorder.cli.report.studies import FIGURES
from firstorder.cli.report.studies import study as drawn

RECORDS = results.RECORDS / "studies"
IMAGES = Path(__file__).parent / "images"


def record(name: str) -> dict[str, Any]:
    """The document that `firstorder study NAME --json` wrote."""
    found: dict[str, Any] = json.loads((RECORDS / f"{name}.json").read_text())
    return found


def names() -> list[str]:
    """Studies that have a record."""
    return sorted(path.stem for path in RECORDS.glob("*.json"))


def digest(name: str) -> str:
    """Of the record's rows and of the code that draws them."""
    code = Path(FIGURES[name].__code__.co_filename).read_bytes()
    return hashlib.sha256(json.dumps(record(name)["rows"]).encode() + code).hexdigest()


def write() -> None:
    """Draw every record, and put its rows beside."""
    IMAGES.mkdir(exist_ok=True)
    for name in names():
        rows = record(name)["rows"]
        (IMAGES / f"study-{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
        with matplotlib.rc_context({"svg.hashsalt": name}):
            drawn(name, rows).savefig(
                IMAGES / f"study-{name}.svg", metadata={"Date": None, "Description": digest(name)}
            )
