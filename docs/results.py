"""Write the verdicts of tests/records into docs/validate.md, between its markers."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/validate.md"
RECORDS = {name: ROOT / f"tests/records/{name}.json" for name in ("validate", "training")}
MARKS = {
    "validate": ("<!-- results: filled by docs/results.py -->", "<!-- end of results -->"),
    "training": ("<!-- training results: filled by docs/results.py -->", "<!-- end of training results -->"),
}
STATES = {True: "holds", False: "contradicted", None: "open"}


def table(record: dict) -> str:
    """The claims of a record as a Markdown table."""
    rows = ["| claim | kind | verdict | measured |", "|---|---|---|---|"]
    rows += [f"| `{c['id']}` | {c['kind']} | {c['verdict']} | {c['headline']} |" for c in record["claims"]]
    return "\n".join(rows)


def map_of(record: dict) -> str:
    """Where each finding holds: a row a condition, a column a claim that was settled in conditions."""
    claims = [claim for claim in record["claims"] if "conditions" in claim["measured"]]
    places = dict.fromkeys(place for claim in claims for place in claim["measured"]["conditions"])
    rows = ["| condition | " + " | ".join(f"`{claim['id']}`" for claim in claims) + " |"]
    rows.append("|---" * (len(claims) + 1) + "|")
    for place in places:
        found = [claim["measured"]["conditions"].get(place) for claim in claims]
        rows.append(f"| `{place}` | " + " | ".join("" if f is None else STATES[f["holds"]] for f in found) + " |")
    return "\n".join(rows)


def leads_of(record: dict) -> str:
    """Every difference whose interval leaves 0 out, which is what the runs do settle."""
    rows = ["| condition | difference in final exact J | value |", "|---|---|---|"]
    seen = set()
    for claim in record["claims"]:
        for place, found in claim["measured"].get("conditions", {}).items():
            for name, e in found["differences"].items():
                settled = "collapsed" not in name and (e["low"] > 0 or e["high"] < 0)
                if settled and (place, name) not in seen:
                    seen.add((place, name))
                    rows.append(f"| `{place}` | {name} | {e['value']:+.2f} [{e['low']:.2f}, {e['high']:.2f}] |")
    return "\n".join(rows)


def filled(page: str, record: dict, name: str = "validate") -> str:
    """The page with the tables of a record in place."""
    begin, end = MARKS[name]
    before, rest = page.split(begin)
    after = rest.split(end)[1] if end in rest else rest
    tables = [table(record), map_of(record), leads_of(record)] if name == "training" else [table(record)]
    return f"{before}{begin}\n\n" + "\n\n".join(tables) + f"\n\n{end}{after}"


if __name__ == "__main__":
    page = PAGE.read_text()
    for name, file in RECORDS.items():
        page = filled(page, json.loads(file.read_text()), name)
    PAGE.write_text(page)
