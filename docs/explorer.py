"""Make the data of the explorer, from the map of `recommend` and from the exact simulator: `make explorer`."""

from __future__ import annotations

from firstorder.cli.api import gridded, portrayed
from firstorder.cli.report import explorer
from firstorder.core.runs.files import to_json, write_whole


def main() -> None:
    """Compute all of it, check it, and put it in the package."""
    held = {"schema": explorer.SCHEMA, "decision": gridded.decision(), "policy": portrayed.policy()}
    text = to_json(held, None)
    explorer.parse(text, "what was made")
    write_whole(explorer.SHIPPED, text)
    print(f"{explorer.SHIPPED}, {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()
