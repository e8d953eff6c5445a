"""The table of alarms that the package ships, from the answer of its study.

firstorder study warnings --out runs/warnings --json answer.json
python docs/alarms.py answer.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from firstorder.core.runs.alarm_table import parse
from firstorder.core.runs.files import to_json, write_whole

SHIPPED = Path(__file__).parents[1] / "core" / "runs" / "alarms.json"


def main(answer: str) -> None:
    """Check the table in an answer, and put it in the package."""
    found = json.loads(Path(answer).read_text(encoding="utf-8"))["measured"]["table"]
    text = to_json(found)
    alarms = parse(text, answer).alarms
    write_whole(SHIPPED, text)
    print(f"{SHIPPED}: {len(alarms)} alarms")


if __name__ == "__main__":
    main(*sys.argv[1:])
