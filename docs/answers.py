"""What studies found, from their records in tests/records/studies: tables, and a picture each beside its data.

A picture says which record it was drawn from, which a test compares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

import tables
from firstorder.cli.report.studies import FIGURES
from firstorder.cli.report.studies import study as drawn

RECORDS = Path(__file__).parents[1] / "tests/records/studies"
IMAGES = Path(__file__).parent / "images"
Row = Mapping[str, Any]


def record(name: str) -> dict[str, Any]:
    """The document that `firstorder study NAME --json` wrote."""
    found: dict[str, Any] = json.loads((RECORDS / f"{name}.json").read_text())
    return found


def number(value: float | None, places: int = 3) -> str:
    """So many digits; nothing for what is not there."""
    return "" if value is None else f"{value:.{places}g}"


def interval(row: Row, key: str = "") -> str:
    """A value with its interval."""
    value, low, high = (row[name] for name in ((key, f"{key}_low", f"{key}_high") if key else ("value", "low", "high")))
    return "" if value is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _where(row: Row) -> str:
    """Where a finding holds along an axis."""
    if row["border"] is None:
        return "everywhere" if row["holds"] else "nowhere"
    side = "above" if row["holds_above"] else "below"
    return f"{side} {number(row['border'])} ({number(row['below'])} to {number(row['above'])})"


COLUMNS: Mapping[str, Sequence[tuple[str, Callable[[Row], str]]]] = {
    "regimes": (
        ("finding", lambda row: f"`{row['finding']}`"),
        ("along", lambda row: row["axis"]),
        ("searched", lambda row: f"{number(row['low'])} to {number(row['high'])}"),
        ("holds", _where),
    ),
    "causes": (
        ("run", lambda row: row["condition"]),
        ("taken out", lambda row: "" if row["removal"] is None else f"{row['suspect']}: {row['removal']}"),
        ("J at the end", lambda row: interval(row, "j_pi")),
        ("collapsed", lambda row: f"{row['collapsed']:.0%}"),
        ("share of the loss gone", lambda row: interval(row, "share")),
        ("verdict", lambda row: row["verdict"] or ""),
    ),
}


def study(name: str) -> str:
    """The rows of a study."""
    heads, cells = zip(*COLUMNS[name], strict=True)
    return tables.rows(heads, ([cell(row) for cell in cells] for row in record(name)["rows"]))


def findings() -> str:
    """What each name of the regimes stands for."""
    rule = record("regimes")["study"]["rule"]
    named = [part.split(": ", 1) for part in rule.split(": ", 1)[1].split("; ")]
    return tables.rows(("finding", "holds at a point where"), ((f"`{name}`", text) for name, text in named))


def claims() -> str:
    """Each published cause with its answer."""
    return tables.rows(
        ("cause", "answer"), ((each["claim"], each["answer"]) for each in record("causes")["measured"]["claims"])
    )


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
