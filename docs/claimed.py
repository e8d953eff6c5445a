"""What a page on a claim says of it: where it comes from, how it was judged, its numbers, and what to log."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import results
import tables
from firstorder.sim.claims import FULL, Claim, ablations, crossover, drift, identities, order, parts, targets, worlds
from firstorder.sim.claims.training import TRAINING_FULL, discrepancy, findings, long, long_findings, predictors
from wording import TINY, estimate, short

FOLDER = Path(__file__).parent / "claims"
MANY = 6  # deviations: of more the largest is told
SEVERAL = 3  # things with the same numbers: from so many on a table
FEW = (identities, targets, parts, worlds, drift)  # modules that settle a claim on POLICIES policies
ONCE = (*FEW, crossover, ablations)  # with one draw of the noise each
MODULES = (*ONCE, order, discrepancy, findings, long_findings, predictors)
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What numbers come from: a link, the command that makes them again, seeds, a file of tests/records, a version."""

    name: str
    command: str
    seeds: str
    record: str
    version: str


def source(name: str) -> Source:
    """Where the numbers of a claim come from."""
    of = recorded(name)[1]
    flag = " --training" if of == "training" else ""
    return Source(
        name=f"[`{name}`](claims/{name}.md)",
        command=f"firstorder validate{flag} --only {name}",
        seeds=_seeds(*_known(name)),
        record=f"{of}.json",
        version=_document(of)["version"],
    )


def claim(name: str) -> str:
    """What it states, by whom, and what it came to."""
    found, _ = recorded(name)
    known, module = _known(name)
    made = source(name)
    head, *cells = (
        ("verdict", f"**{found['verdict']}**: {found['headline']}"),
        ("kind", known.kind),
        ("source", known.source),
        ("rule", known.rule),
        ("command", f"`{made.command}`"),
        ("seeds", made.seeds),
        ("code", f"`{_file(module)}`"),
        ("record", f"`tests/records/{made.record}`, firstorder {made.version}"),
    )
    return f"> {sentence(known.statement, known.kind)}\n\n" + tables.rows(head, cells)


def sentence(statement: str, kind: str) -> str:
    """A statement as it stands on a page: an equation in code, words with a capital."""
    return f"`{statement}`" if kind == "theorem" and " = " in statement else statement[:1].upper() + statement[1:]


def measured(name: str) -> str:
    """Everything in the record of a claim."""
    found = recorded(name)[0]["measured"]
    if "conditions" in found:
        return _conditions(found["conditions"])
    columns = {key: value for key, value in found.items() if isinstance(value, list) and len(value) > 2}
    return "\n\n".join(filter(None, (_single(found, columns), _series(columns))))


def logged(*names: str) -> str:
    """What a run or a measurement says of it, by name."""
    known = {name: one for group in tables.groups().values() for name, one in group.items()}
    return tables.rows(
        ("name", "formula", "unit", "source"),
        ((f"`{name}`", known[name].formula, known[name].unit, known[name].source) for name in names),
    )


def pages() -> list[Path]:
    """A page of every claim."""
    return sorted(FOLDER.glob("*.md"))


def recorded(name: str) -> tuple[dict[str, Any], str]:
    """What the record holds of a claim, and which record that is."""
    of = "training" if name.startswith("training-") else "validate"
    return next(one for one in results.record(of) if one["id"] == name), of


def _document(of: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((results.RECORDS / f"{of}.json").read_text())
    return found


def _known(name: str) -> tuple[Claim, ModuleType]:
    """A claim, and the module that settles it."""
    return next((claim, module) for module in MODULES for claim in module.CLAIMS if claim.id == name)


def _file(module: ModuleType) -> str:
    return f"{module.__name__.removeprefix('firstorder.').replace('.', '/')}.py"


def _seeds(known: Claim, module: ModuleType) -> str:
    """The policies that the verdict rests on, on which no setting was chosen."""
    if module is discrepancy:
        return "below 1000: it is a setting of the others"
    if module is long_findings and known.id != "training-long-is":
        return _range(long.FIRST, long.SEEDS, 1)
    if known.id.startswith("training-"):
        return _range(TRAINING_FULL.first_seed, TRAINING_FULL.policies, 1)
    if module in ONCE:
        return _range(FULL.first_seed, module.POLICIES if module in FEW else FULL.policies, 1)
    spent = order.spend(FULL, "value" if known.id.endswith("value-order") else "gradient")
    return _range(spent.first_seed, spent.policies, spent.draws)


def _range(first: int, count: int, draws: int) -> str:
    return f"{first} to {first + count - 1}" + (f", {draws} draws of the noise each" if draws > 1 else "")


def _conditions(places: Mapping[str, Row]) -> str:
    """What was compared in each condition, and how each recipe of it ended."""
    compared = (
        (f"`{place}`", results.STATES[judged["holds"]], _counts(judged), title, estimate(each))
        for place, judged in places.items()
        for title, each in judged["differences"].items()
    )
    ends = (
        (f"`{place}`", f"`{name}`", estimate(run["final_j_pi"]), estimate(run["collapsed"]), short(run["kl"]))
        for place, judged in places.items()
        for name, run in judged["recipes"].items()
    )
    return "\n\n".join(
        (
            tables.rows(("condition", "finding", "counts", "compared", "value"), compared),
            "How each recipe ended: J of π, the share of seeds that collapsed, and KL(μ‖π) in nats a token.",
            tables.rows(("condition", "recipe", "final exact J", "collapsed", "KL"), ends),
        )
    )


def _counts(judged: Row) -> str:
    """Whether the verdict rests on a condition, and what would settle one that is open."""
    wanted = judged.get("seeds_to_settle")
    return ("yes" if judged.get("counts", True) else "beside") + (f"; {wanted} seeds would settle it" if wanted else "")


def _single(found: Row, columns: Row) -> str:
    """Numbers by their path in the record; those of several things side by side, a row a thing."""
    rest = {key: value for key, value in found.items() if key not in columns}
    alone, tabled = _grouped({key: value for key, value in rest.items() if key != "deviation"})
    cells = [*_largest(rest.get("deviation", {})), *_flat(alone)]
    return "\n\n".join(([tables.rows(("quantity", "value"), cells)] if cells else []) + tabled)


def _grouped(found: Row) -> tuple[Row, list[str]]:
    """What stands alone, and a table for those that have the same numbers as others; groups inside a group as well."""
    alike: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for key, value in found.items():
        if isinstance(value, Mapping) and len(cells := dict(_flat(value))) > 1 and not _is_estimate(value):
            alike.setdefault(tuple(cells), {})[key] = cells
    shown = {heads: rows for heads, rows in alike.items() if len(rows) >= SEVERAL}
    made = [
        tables.rows(("", *heads), ([f"`{k}`", *c.values()] for k, c in rows.items())) for heads, rows in shown.items()
    ]
    alone = {key: value for key, value in found.items() if not any(key in rows for rows in shown.values())}
    for key, value in list(alone.items()):
        if isinstance(value, Mapping) and not _is_estimate(value):
            alone[key], inner = _grouped(value)
            made += [f"`{key}`:\n\n{table}" for table in inner]
    return alone, made


def _is_estimate(value: Row) -> bool:
    return {"value", "low"} <= set(value)


def _largest(deviations: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Deviations of the two sides of a theorem; of many the largest."""
    if len(deviations) > MANY:
        worst = max(deviations, key=lambda name: deviations[name])
        yield f"largest of {len(deviations)} deviations: {worst}", f"{deviations[worst]:.1e}"
        return
    yield from ((f"deviation: {name}", f"{value:.1e}") for name, value in deviations.items())


def _flat(found: Row, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    for key, value in found.items():
        here = (*path, f"`{key}`")
        if isinstance(value, Mapping) and not _is_estimate(value):
            yield from _flat(value, here)
        else:
            yield " ".join(here), _written(value)


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return estimate(value)
    if isinstance(value, list):
        return ", ".join(map(_written, value))
    if isinstance(value, str | bool | int):
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < TINY else short(value)  # rounding, and limits on it


def _series(columns: Mapping[str, list[float]]) -> str:
    """Lists of one length side by side."""
    if not columns:
        return ""
    return tables.rows(
        (f"`{key}`" for key in columns), (map(short, row) for row in zip(*columns.values(), strict=True))
    )
