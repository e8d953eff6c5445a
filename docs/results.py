"""Write the verdicts of tests/records/validate.json into docs/validate.md, between its markers."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "tests/records/validate.json", ROOT / "docs/validate.md"
BEGIN, END = "<!-- results: filled by docs/results.py -->", "<!-- end of results -->"


def table(record: dict) -> str:
    """The claims of a record as a Markdown table."""
    rows = ["| claim | kind | verdict | measured |", "|---|---|---|---|"]
    rows += [f"| `{c['id']}` | {c['kind']} | {c['verdict']} | {c['headline']} |" for c in record["claims"]]
    return "\n".join(rows)


def filled(page: str, record: dict) -> str:
    """The page with the table in place."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1] if END in rest else rest
    return f"{before}{BEGIN}\n\n{table(record)}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(), json.loads(RECORD.read_text())))
