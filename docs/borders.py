"""The borders that the package ships, from the answer of their study.

firstorder study regimes --out runs/regimes --json answer.json
python docs/borders.py answer.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from firstorder.core.runs.files import to_json, write_whole
from firstorder.sim.trials.borders import SHIPPED, read


def main(answer: str) -> None:
    """Check the borders in an answer, and put them in the package."""
    text = to_json({"borders": json.loads(Path(answer).read_text(encoding="utf-8"))["measured"]["borders"]})
    partial = Path(answer).with_suffix(".borders.json")
    write_whole(partial, text)
    known = read(partial)
    partial.unlink()
    write_whole(SHIPPED, text)
    print(f"{SHIPPED}: {len(known)} borders")


if __name__ == "__main__":
    main(*sys.argv[1:])
