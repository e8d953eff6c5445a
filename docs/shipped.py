"""What the package ships of the answers of studies: alarms, borders and the map.

firstorder study warnings --out runs/warnings --json answer.json
python docs/shipped.py alarms answer.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from firstorder.core.runs import alarm_table
from firstorder.core.runs.files import to_json, write_whole
from firstorder.sim.trials import atlas, borders

ROOT = Path(__file__).parents[1]
Measured = Mapping[str, Any]
SHIPPED: Mapping[str, tuple[Path, Callable[[Measured], Any], Callable[[str, str], object]]] = {
    "alarms": (ROOT / "core/runs/alarms.json", lambda measured: measured["table"], alarm_table.parse),
    "borders": (ROOT / "sim/trials/borders.json", lambda measured: {"borders": measured["borders"]}, borders.parse),
    "map": (ROOT / "sim/trials/atlas.json", lambda measured: measured["map"], atlas.parse),
}
"""By name: where it lies, what it is of an answer, and what checks it."""


def main(name: str, answer: str) -> None:
    """Check what an answer holds, and put it in the package."""
    file, part, parse = SHIPPED[name]
    held = part(json.loads(Path(answer).read_text(encoding="utf-8"))["measured"])
    text = to_json(held, None if name == "map" else 2)  # a line for each of 100,000 numbers is three times as long
    parse(text, answer)
    write_whole(file, text)
    print(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
