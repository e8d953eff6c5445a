"""The answers of `recommend` on a grid of regimes, as the explorer looks them up: made here, never in the page.

Columns are stored as their distinct values and, for each regime, the place of its own among them: neighbours often have
the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from .advised import answered
from .recommend import DEFAULTS, point_of

if TYPE_CHECKING:
    from firstorder.sim.trials.atlas import Atlas, Point

AXES: Mapping[str, Sequence[float]] = {
    "step": (1e-4, 1e-3),
    "horizon": (512, 2048, 8192, 32768),
    "n": (1, 2, 4, 8),
    "flips": (0.005, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5),
    "kl": (1.5e-4, 3e-4, 7e-4, 1.5e-3, 3e-3, 5e-3, 1e-2, 2e-2, 4e-2),
}
"""The grid, the last axis the fastest. Its outermost KL and flips lie beyond what was measured, and say so."""
NUMBERS = ("error", "cosine", "score", "ess", "sequence_ess")  # of an option, in this order
NEAREST = ("kl_found", "kl_replayed", "flips_found", "horizon", "step", "entropy")  # of the nearest cell, in this order
DIGITS = 5  # significant ones
SMALLEST = 1e-12  # what is smaller is what rounding leaves of 0
FIXED = ("group", "entropy")
Row = dict[str, Any]


def decision() -> dict[str, Any]:
    """The grid, the options and the columns of answers."""
    from firstorder.core import progress
    from firstorder.sim.trials import atlas as maps
    from firstorder.sim.trials.options import OPTIONS

    atlas, regimes = maps.read(), [*points()]
    rows = [regime(atlas, point) for point in progress.steps("regimes", regimes)]
    return {
        "axes": {name: list(values) for name, values in AXES.items()},
        "fixed": {name: DEFAULTS[name] for name in FIXED},
        "measured": {name: atlas.axes[name] for name in ("kl", "flips", "horizon", "step")},
        "policies": len(atlas.seeds),
        "numbers": list(NUMBERS),
        "options": [
            {"name": one.name, "replay": one.replay, "correction": one.correction, "clip": one.clip}
            for one in OPTIONS.values()
        ],
        "columns": {name: _column([row[name] for row in rows]) for name in rows[0]},
    }


def points() -> Iterator[Point]:
    """The regimes of the grid, in order."""
    for values in product(*AXES.values()):
        yield point_of({**DEFAULTS, **dict(zip(AXES, values, strict=True))})


def regime(atlas: Atlas, point: Point) -> Row:
    """What is shown of a regime; options by their place in the table of options."""
    from firstorder.sim.trials.atlas import choose
    from firstorder.sim.trials.options import OPTIONS
    from firstorder.sim.trials.ruled import allowed

    found, place = atlas.numbers(point), {name: i for i, name in enumerate(OPTIONS)}
    left = allowed(found, point)
    answer, choice = answered(atlas, point, found, exact=False), choose(left)
    plain = {each["option"]: [rounded(each[name]) for name in NUMBERS] for each in answer["options"]}
    distinct = [*dict.fromkeys(tuple(plain[name]) for name in OPTIONS)]
    return {
        "chosen": place[answer["advice"]["option"]],
        "said": answer["advice"]["said"].removeprefix("recommended: "),
        "command": answer["advice"]["command"],
        "tied": sorted(place[each.option.name] for each in choice.tied),
        "alone": place[choose(found).chosen.option.name],
        "allowed": sorted(place[name] for name in left),
        "rows": [list(row) for row in distinct],
        "row_of": [distinct.index(tuple(plain[name])) for name in OPTIONS],
        "sure": _sure(answer["sure"], place) | {"around": bool(atlas.around(point))},
        "changes": {
            axis: {side: [rounded(there["at"]), place[there["advice"]]] for side, there in sides.items()}
            for axis, sides in answer["changes"].items()
        },
        "training": [f"{each['found']} ({each['source']})" for each in answer["training"]],
        "paper": answer["paper"],
    }


def _sure(sure: Mapping[str, Any], place: Mapping[str, int]) -> Row:
    """How sure an answer is, in numbers."""
    lead = sure["lead"]
    return {
        "outside": {axis: rounded(edge) for axis, edge in sure["outside"].items()},
        "nearest": [rounded(sure["nearest"][name]) for name in NEAREST],
        "agree": rounded(sure["agree"]),
        "lead": None if lead is None else [place[lead["over"]], rounded(lead["value"]), rounded(lead["error"])],
    }


def rounded(value: float) -> float:
    """With as many digits as the page shows at most."""
    return 0.0 if abs(value) < SMALLEST else float(f"{value:.{DIGITS}g}")


def _column(values: Sequence[Any]) -> dict[str, Any]:
    """Distinct values, in order of their first use, and the place of each regime's own."""
    keys = [repr(value) for value in values]
    distinct = dict(zip(keys, values, strict=True))
    place = {key: i for i, key in enumerate(distinct)}
    return {"values": [*distinct.values()], "at": [place[key] for key in keys]}
