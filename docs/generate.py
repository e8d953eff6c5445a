"""Write everything on the pages that is known to the code: tables between their markers, and the pictures.

`make docs-tables` runs it; a test makes the same in memory and compares. A marker names its table and what it is of:

    <!-- table: keys sim -->
    <!-- end of table -->
"""

from __future__ import annotations

import re
from pathlib import Path

import agreement
import answers
import auditing
import claimed
import decision
import found
import landing
import mapped
import naming
import orders
import pictures
import plots
import results
import rooms
import shown
import tables
import walks

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), *claimed.pages()]
MARKED = re.compile(r"(<!-- table: (\w+)((?: [\w./-]+)*) -->\n).*?(<!-- end of table -->)", flags=re.DOTALL)
TABLES = {
    "keys": tables.keys,
    "quantities": tables.quantities,
    "outcomes": tables.outcomes,
    "alarms": tables.alarms,
    "recipes": tables.recipes,
    "options": tables.options,
    "parts": tables.parts,
    "forms": tables.forms,
    "rooms": rooms.table,
    "verdicts": results.verdicts,
    "conditions": results.conditions,
    "every": found.every,
    "found": found.found,
    "unsettled": found.unsettled,
    "bibtex": found.bibtex,
    "claim": claimed.claim,
    "measured": claimed.measured,
    "logged": claimed.logged,
    "symptoms": decision.table,
    "mismatch": answers.mismatch,
    "drift": answers.drift,
    "causes": answers.causes,
    "claims": answers.claims,
    "deployed": answers.deployed,
    "warnings": answers.warnings,
    "regimes": answers.regimes,
    "replayed": answers.replayed,
    "frontier": answers.frontier,
    "baselines": answers.baselines,
    "findings": answers.findings,
    "samples": answers.samples,
    "bounded": answers.bounded,
    "thin": answers.thin,
    "map": mapped.table,
    "anchors": mapped.anchors,
    "paper": mapped.paper,
    "formats": auditing.formats,
    "detectors": auditing.detectors,
    "caught": auditing.caught,
    "named": naming.named,
    "sources": naming.sources,
    "cases": agreement.cases,
    "conventions": agreement.conventions,
    "added": agreement.added,
    "terms": agreement.terms,
    "peers": agreement.peers,
}
PICTURES = (*landing.PICTURES, decision.PICTURE, orders.PICTURE, *walks.PICTURES, *plots.PICTURES)


def filled(page: str) -> str:
    """A page with every marked table made anew."""

    def made(place: re.Match[str]) -> str:
        begin, name, of, end = place.groups()
        return f"{begin}\n{TABLES[name](*of.split())}\n\n{end}"

    return MARKED.sub(made, page)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
    rooms.PICTURE.write_text(rooms.picture())
    mapped.write()
    for picture in PICTURES:
        picture.write()
    pictures.write()
    shown.write()
