"""The explorer: one page on which regimes and a tiny policy are looked at; its script looks numbers up, and makes none.

All numbers are in the package as JSON, written by `make explorer` with the code that answers `firstorder recommend` and
`firstorder measure`.
"""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

from firstorder.core.errors import DataError
from firstorder.core.runs.files import shipped_text
from firstorder.sim.trials.options import OPTIONS

from . import kit

SCHEMA = "firstorder.explorer/1"
TITLE = "R2, R3 or none?"
SCRIPTS = ("uplot.js", "explorer.js", "explorer-decision.js", "explorer-policy.js")
STYLES = ("uplot.css", "explorer.css")
SHIPPED = Path(str(resources.files("firstorder.cli.report"))) / "static" / "explorer.json"


def page() -> str:
    """The explorer as one HTML document.

    Raises:
        DataError: its data cannot be read.
    """
    script = "\n".join(kit.static(name) for name in SCRIPTS)
    style = "\n".join(kit.static(name) for name in STYLES)
    return kit.document(TITLE, [kit.static("explorer.html"), kit.data("explorer-data", read())], script, style)


def read() -> dict[str, Any]:
    """The data of the package.

    Raises:
        DataError: they cannot be read, or are none.
    """
    return parse(shipped_text(SHIPPED, "data of the explorer"), str(SHIPPED))


def parse(text: str, where: str) -> dict[str, Any]:
    """The data of JSON text; `where` it comes from is named in errors.

    Raises:
        DataError: it is none, is not whole, or is of other options than this version has.
    """
    try:
        held: dict[str, Any] = json.loads(text)
        fault = _fault(held)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{where} holds no data of the explorer ({error!r}); install firstorder again") from None
    if fault:
        raise DataError(f"{where}: {fault}; run `make explorer`")
    return held


def _fault(held: dict[str, Any]) -> str:
    """What is wrong with data; nothing if they are whole."""
    decision, policy = held["decision"], held["policy"]
    if held["schema"] != SCHEMA:
        return f"schema must be {SCHEMA}, got {held['schema']}"
    if [one["name"] for one in decision["options"]] != list(OPTIONS):
        return "the options are not those of this version"
    size = math.prod(len(values) for values in decision["axes"].values())
    for name, column in decision["columns"].items():
        if len(column["at"]) != size or not 0 <= min(column["at"]) <= max(column["at"]) < len(column["values"]):
            return f"column {name} does not fit a grid of {size:,} regimes"
    places = len(policy["noises"]) * len(policy["staleness"])
    rows = len(policy["methods"]) * len(policy["replays"])
    if [len(policy["nodes"]), len(policy["measured"])] != [places] * 2 or any(
        len(x) != rows for x in policy["measured"]
    ):
        return f"the policy is not held at {places} places with {rows} measurements each"
    return ""
