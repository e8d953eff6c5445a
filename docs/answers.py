"""Tables of what the studies and the examples of a collapse found, from tests/records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import results
import tables
from wording import estimate as _estimate
from wording import short as _short

FOLDER = results.RECORDS / "studies"
FIRST = 12  # rows of a long table that are shown
NOISE = "0.1"  # of the responses whose bounds are shown
Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]


def mismatch() -> str:
    """Both runs of docs/examples/mismatch.toml: J, and their logs: at the first step, and the median over steps."""
    found = _read(results.RECORDS / "mismatch.json")["runs"]
    return tables.rows(
        ("run", "J before, ..., after", "collapsed", *(f"`{name}`" for name in found[0]["logged"])),
        (
            [f"`{run['set']}`", _course(run["j"]), f"{run['collapsed']} of {run['members']}"]
            + [f"{_short(first)}; {_short(usual)}" for first, usual in run["logged"].values()]
            for run in found
        ),
    )


def drift() -> str:
    """The arms of docs/examples/drift.py."""
    return tables.rows(
        ("update", "J before", "lowest", "after", "collapsed"),
        (
            [
                row["arm"],
                *(_short(j) for j in (row["j"][0], min(row["j"]), row["j"][-1])),
                f"{row['collapsed']} of {row['seeds']}",
            ]
            for row in _read(results.RECORDS / "drift.json")["rows"]
        ),
    )


def _course(j: list[float]) -> str:
    return ", ".join(f"{x:.2f}" for x in j)


def causes() -> str:
    """Every run that declines, and what is left of its loss without one suspect."""
    return _table(
        "causes",
        ("run", lambda row: row["condition"]),
        ("taken out", lambda row: "nothing" if row["suspect"] is None else f"{row['suspect']}: {row['removal']}"),
        ("recipe", lambda row: f"`{row['recipe']}`"),
        ("J at the end", lambda row: interval(row, "j_pi")),
        ("share of the loss that goes", lambda row: interval(row, "share")),
        ("a cause", lambda row: row["verdict"] or ("" if row["suspect"] is None else "is the reference")),
    )


def claims() -> str:
    """What each published claim about causes came to."""
    found = record("causes")
    if found is None:
        return _missing("causes")
    rows = found["measured"]["claims"]
    return tables.rows(("claimed cause", "answer"), ((row["claim"], row["answer"]) for row in rows))


def deployed() -> str:
    """Whether what is deployed gets worse where what is trained gets better."""
    found = record("causes")
    if found is None:
        return _missing("causes")
    return _rows(
        found["measured"]["deployed"]["runs"],
        ("run", lambda row: row["condition"]),
        ("recipe", lambda row: f"`{row['recipe']}`"),
        ("J(π) - J(μ) at the end", lambda row: _estimate(row["behind"])),
        ("J(μ) falls where J(π) rises", lambda row: _estimate(row) if "value" in row else ""),
        ("gets worse", lambda row: results.STATES[row["holds"]]),
    )


def warnings() -> str:
    """The alarms, or where none passed the rule, what came nearest to one."""
    found = record("warnings")
    if found is None:
        return _missing("warnings")
    points = {alarm["name"]: alarm for alarm in found["measured"]["table"]["alarms"]}
    rows = [row for row in found["rows"] if row["alarm"]] or found["rows"][:FIRST]
    return _rows(
        rows,
        ("reading", lambda row: f"`{row['quantity']}`"),
        ("AUC", lambda row: interval(row, "auc")),
        ("collapses warned of", lambda row: interval(row, "hits")),
        ("false alarms", lambda row: interval(row, "false_alarms")),
        ("updates ahead", lambda row: interval(row, "lead")),
        ("points to", lambda row: points[row["quantity"]]["cause"] if row["quantity"] in points else "no alarm"),
    )


FRONTIER = ("minirl", "minirl-r3", "minirl-no-clip", "minirl-r3-no-clip", "minirl-no-is", "minirl-r3-no-is", "dppo-tv")
BASELINES = ("b published", "b best of a position", "b = E[R | context]", "b best of a context")


def replayed() -> str:
    """What each way to replay brings and costs in the long world, at the first mini-batch and at the eighth."""
    found = record("replay")
    if found is None:
        return _missing("replay")
    return _rows(
        (row for row in found["rows"] if row["world"] == "long" and row["updates"] in (0, 7)),
        ("updates before", lambda row: str(row["updates"])),
        ("replay", lambda row: "none" if row["replay"] == "disabled" else f"`{row['replay']}`"),
        ("KL to the target", lambda row: _short(row["kl_target"])),
        ("bias of J", lambda row: _short(row["size"])),
        *((f"{key}", lambda row, key=key: _short(row[key])) for key in ("numerics", "gates", "flips", "staleness")),
        ("altered target", lambda row: _short(row["target"])),
        ("in all", lambda row: f"{_short(row['whole'])} [{_short(row['whole_low'])}, {_short(row['whole_high'])}]"),
        ("variance", lambda row: _short(row["variance"])),
        ("mean squared error", lambda row: _short(row["mse"])),
        ("progress", lambda row: _short(row["progress"])),
    )


def frontier() -> str:
    """The progress of some recipes in every condition, as a share of that on policy."""
    return _by_condition(FRONTIER, ("on policy", lambda rows: _short(rows["minirl"]["on_policy"])))


def baselines() -> str:
    """The progress of the token ratio under each baseline."""
    return _by_condition(("minirl-no-clip", *BASELINES))


def _by_condition(recipes: Iterable[str], *columns: tuple[str, Callable[[dict[str, Row]], str]]) -> str:
    found = record("frontier")
    if found is None:
        return _missing("frontier")
    conditions: dict[str, dict[str, Row]] = {}
    for row in found["rows"]:
        conditions.setdefault(row["condition"], {})[row["recipe"]] = row
    known = {name: rows for name, rows in conditions.items() if all(recipe in rows for recipe in recipes)}
    heads = ("condition", "KL", "flips", *(name for name, _ in columns), *(f"`{recipe}`" for recipe in recipes))
    return tables.rows(
        heads,
        (
            [name, _short(rows["minirl"]["kl"]), _short(rows["minirl"]["flips"])]
            + [read(rows) for _, read in columns]
            + [f"{rows[recipe]['progress']:.2f}" for recipe in recipes]
            for name, rows in known.items()
        ),
    )


def regimes() -> str:
    """Every search, and the border that it found."""
    return _table(
        "regimes",
        ("finding", lambda row: row["finding"]),
        ("along", lambda row: row["axis"]),
        ("searched", lambda row: f"{_short(row['low'])} to {_short(row['high'])}"),
        ("holds", _side),
    )


def samples() -> str:
    """Both sides of the border, trained on samples."""
    return _table(
        "samples",
        ("T", lambda row: str(row["T"])),
        ("lead", lambda row: interval(row, "lead")),
        ("above 0.05", lambda row: {True: "yes", False: "no", None: "open"}[row["holds"]]),
        ("`minirl`", lambda row: _short(row["j_pi minirl"])),
        ("`minirl-no-is`", lambda row: _short(row["j_pi minirl-no-is"])),
        ("collapsed without", lambda row: f"{row['collapsed minirl-no-is']:.0%}"),
    )


def bounded() -> str:
    """Every bound: the largest share of it that was found, where, and what it says of the longest responses."""
    found = record("bounds")
    if found is None:
        return _missing("bounds")
    measured = found["measured"]
    return tables.rows(
        ("bound", "on", "holds", "largest share found", "where", "sharp", "median share, T = 5", "median, T = 32,768"),
        (
            [
                f"`{row['name']}`",
                {"error": "error", "replay": "replay bias"}[row["of"]],
                results.STATES[row["holds"]],
                f"{row['largest']:.4f}",
                _where(row),
                "yes" if row["sharp"] else "no",
                *(
                    _told(row, measured[part], at, key)
                    for part, at, key in (("policies", 5, "ratio"), ("longest", 32768, "limit"))
                ),
            ]
            for row in measured["bounds"]
        ),
    )


def thin() -> str:
    """Boundary mass and flips of every router."""
    found = record("bounds")
    if found is None:
        return _missing("bounds")
    return _rows(
        found["measured"]["margins"],
        ("router", lambda row: f"`{row['router']}`"),
        ("policies", lambda row: {"alone": "one choice alone", "start": "random", "trained": "trained"}[row["state"]]),
        ("slope of P(margin < ε)", lambda row: _judged(row, "width_slope")),
        ("slope of flips", lambda row: _judged(row, "flip_slope")),
        ("density of margins at 0", lambda row: _estimate(row["density"])),
        ("flips over predicted, noise 0.01", lambda row: _judged(row, "judged", "law_holds")),
    )


def findings() -> str:
    """What each finding of the regimes is, and when it holds at a point."""
    found = record("regimes")
    if found is None:
        return _missing("regimes")
    rule = found["study"]["rule"].split(": ", 1)[1]
    return tables.rows(("finding", "holds at a point where"), (part.split(": ", 1) for part in rule.split("; ")))


def _where(row: Row) -> str:
    size = "" if row["vocab"] is None else f"V = {row['vocab']}, "
    return f"{row['part']}, {size}{'update' if row['part'] == 'training' else 'T ='} {row['at']}"


def _told(bound: Row, rows: list[Row], at: float, key: str) -> str:
    """A median of the natural target's error, or of R3's replay bias; nothing where it is not formed."""
    target = "disabled" if bound["of"] == "error" else "R3"
    mine = [
        row
        for row in rows
        if (row["of"], row["name"], row["target"], row["at"]) == (bound["of"], bound["name"], target, at)
        and (row["part"] == "policies" or row["part"].endswith(NOISE))
    ]
    return _short(mine[0][key]) if mine else ""


def _judged(row: Row, name: str, holds: str | None = None) -> str:
    """An estimate and what the rule says of it."""
    state = row[holds or f"{name}_holds"]
    word = {True: "yes", False: "no", None: "open"}[state]
    return f"{_estimate(row[name])}: {word}" if row[name]["value"] is not None else "open"


def _side(row: Row) -> str:
    if row["border"] is None:
        return "everywhere" if row["holds"] else "nowhere"
    side = "above a border" if row["holds_above"] else "below a border"
    return f"{side} between {_short(row['below'])} and {_short(row['above'])}"


def _table(name: str, *columns: Column) -> str:
    found = record(name)
    return _missing(name) if found is None else _rows(found["rows"], *columns)


def _rows(rows: Iterable[Row], *columns: Column) -> str:
    return tables.rows((head for head, _ in columns), ([cell(row) for _, cell in columns] for row in rows))


def record(name: str) -> dict[str, Any] | None:
    """What a study wrote, if it has been asked."""
    place = FOLDER / f"{name}.json"
    return _read(place) if place.is_file() else None


def _read(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(place.read_text())
    return found


def _missing(name: str) -> str:
    return f"Not recorded yet: `firstorder study {name}` answers it."


def interval(row: Row, name: str) -> str:
    """A value with its interval; nothing where there is none."""
    value, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    return "" if value is None else _estimate({"value": value, "low": low, "high": high})
