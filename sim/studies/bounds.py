"""How tight the published bounds are: beside the exact error, as responses grow, in training, and where they are worst.

Every part of it is exact; nothing is trained but the policies of two parts, on exact updates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from firstorder.sim.config import Sim
from firstorder.sim.exact.bounds_search import LEAST, SLACK, TARGETS, search
from firstorder.sim.trials.long import LongCondition

from .kept import Part, kept
from .margins import SCALES, WIDTHS, margins
from .study import FIRST, Answer, Plan, Study
from .tightness import ROLLOUT, ROUTERS, Found, lengths, policies, training

SEEDS_FROM = 6000  # those from 2000 were looked at while the tolerance of the rule was made
ROUNDING = 1e-14  # of reward: an error beyond its bound by less is rounding
SEEN = 1e-9  # of reward: the share of a smaller error in its bound is not read
SHARP = 0.99  # of a bound: a search that comes so near shows that its constant cannot be lowered
LINEAR = (0.9, 1.1)  # of a slope of logarithms
LAW = (0.8, 1.25)  # of flips over what margins predict
HIGH = 0.95  # quantile
STATES = ("alone", "start", "trained")  # of the policies whose margins are read
VALUES = ("vocab", "error", "limit", "ratio", "low", "high", "largest", "policies")
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is spent: routers; T and number of random policies; T and noise of long responses; updates of a training;
    V and T of the searches, their draws and steps; policies of margins, alone, at the start and trained, and updates.
    """

    routers: Sequence[Any] = ROUTERS
    horizons: Sequence[int] = (2, 3, 4, 5)
    policies: int = 96
    lengths: Sequence[int] = (32, 128, 512, 2048, 8192, 32768)
    noise: Sequence[float] = (0.02, 0.1)
    problems: int = 4
    updates: int = 48
    error: Sequence[tuple[int, int]] = ((2, 2), (2, 3), (3, 3), (2, 5))
    replay: Sequence[tuple[int, int]] = ((2, 2), (3, 3))
    draws: int = 1000
    steps: int = 250
    margins: tuple[int, int, int] = (1024, 256, 96)
    trained: int = 12


WHOLE = Size()
QUICK = Size(
    routers=ROUTERS[:1],
    horizons=(2, 3),
    policies=16,
    lengths=(8, 32),
    noise=(0.1,),
    problems=1,
    updates=2 * ROLLOUT,
    error=((2, 2),),
    replay=((2, 2),),
    draws=100,
    steps=25,
    margins=(32, 32, 8),
    trained=ROLLOUT,
)


def parts(size: Size, seeds: range) -> dict[str, Part]:
    """Everything that is computed, by the name of its file."""
    first, found = seeds.start, dict[str, Part]()
    members = range(first, first + size.policies)
    for router in size.routers:
        for horizon in size.horizons:
            for stale in (False, True):
                name = f"policies-t{horizon}-{router}-{'stale' if stale else 'fresh'}"
                found[name] = partial(policies, router, horizon, members, stale=stale)
        for state, count in zip(STATES, size.margins, strict=True):
            drawn, updates = range(first, first + count), size.trained if state == "trained" else 0
            found[f"margins-{router}-{state}"] = partial(margins, router, drawn, updates, alone=state == "alone")
    for horizon in size.lengths:
        for noise in size.noise:
            condition = LongCondition(horizon=horizon, noise=noise, problems=size.problems)
            found[f"length-t{horizon}-noise{noise:g}"] = partial(lengths, condition, seeds)
    found["training"] = partial(_training, seeds, size.updates)
    for of, sizes in (("error", size.error), ("replay", size.replay)):
        for name in TARGETS[of]:
            for vocab, horizon in sizes:
                label = f"search-{of}-{name}-v{vocab}-t{horizon}"
                found[label] = partial(_searched, of, name, vocab, horizon, first, size.draws, size.steps)
    return found


def _training(seeds: range, updates: int) -> Found:
    return {"rollouts": training(Sim(horizon=4), seeds, updates)}


def _searched(of: str, name: str, vocab: int, horizon: int, seed: int, draws: int, steps: int) -> Found:
    """The largest ratio, and the policies and the reward of it where they break the bound."""
    found = search(TARGETS[of][name], vocab, horizon, seed, draws=draws, steps=steps)
    at = {part: getattr(found.at, part)[0].tolist() for part in ("pi", "mu", "rewards")} if found.breaks else None
    return {"ratio": found.ratio, "breaks": found.breaks, "at": at}


def _answer(plan: Plan) -> Answer:
    size = QUICK if plan.quick else WHOLE
    found = kept(plan.folder / "bounds", parts(size, plan.seeds))
    tight, searched, margins = list(_tight(size, found)), list(_searches(size, found)), list(_margins(size, found))
    judged, laws = verdicts([*tight, *searched]), [_law(state, found) for state in _states(size)]
    shown = [row for row in tight if _pictured(row, size)]
    measured = {
        "bounds": judged,
        "margins": laws,
        "policies": [row for row in tight if row["part"] == "policies"],
        "training": _thinned([row for row in tight if row["part"] == "training"]),
        "longest": longest(tight),
        "j_pi": [float(np.mean(each["j_pi"])) for each in found["training"]["rollouts"]],
        "excess": _excess(found),
    }
    rows = [*shown, *searched, *(row for row in margins if row["target"] == "start")]
    return Answer(headline=headline(judged, laws), rows=rows, measured=measured)


def _pictured(row: Row, size: Size) -> bool:
    """Whether a row is of responses of growing length at the larger noise, natural for the error and R3 for replay."""
    noisiest = f"length, noise {max(size.noise):g}"
    return row["part"] == noisiest and (row["of"], row["target"]) in (("error", "disabled"), ("replay", "R3"))


def _thinned(rows: Sequence[Row]) -> list[Row]:
    """Those of the first rollout and of each that comes twice as late as the one before."""
    first = min(row["at"] for row in rows)
    return [row for row in rows if (row["at"] // first).bit_count() == 1]


def _tight(size: Size, found: Mapping[str, Found]) -> Iterator[Row]:
    """A row for each part, place, target and bound."""
    for horizon in size.horizons:
        yield from _rows("policies", horizon, (found[n] for n in found if n.startswith(f"policies-t{horizon}-")))
    for noise in size.noise:
        for horizon in size.lengths:
            yield from _rows(f"length, noise {noise:g}", horizon, [found[f"length-t{horizon}-noise{noise:g}"]])
    for rollout, each in enumerate(found["training"]["rollouts"]):
        yield from _rows("training", (rollout + 1) * ROLLOUT, [each])


def _rows(part: str, at: float, found: Iterable[Found]) -> Iterator[Row]:
    cells = list(found)
    keys = dict.fromkeys(key for cell in cells for key in cell if key != "j_pi")
    for key in keys:
        mine = [cell[key] for cell in cells if key in cell]
        bounded = np.concatenate([cell["bounded"] for cell in mine])
        of, target = key.split()
        for name in mine[0]["bounds"]:
            limit = np.concatenate([cell["bounds"][name] for cell in mine])
            ratio = (bounded / (limit + ROUNDING))[bounded > SEEN]
            yield _row(part, of, target, name, at, _spread(bounded, limit, ratio))


def _spread(bounded: Any, limit: Any, ratio: Any) -> Row:
    seen = len(ratio) > 0
    return {
        "error": float(np.median(bounded)),
        "limit": float(np.median(limit)),
        "ratio": float(np.median(ratio)) if seen else None,
        "high": float(np.quantile(ratio, HIGH)) if seen else None,
        "largest": float(ratio.max()) if seen else None,
        "policies": len(bounded),
    }


def _row(part: str, of: str, target: str, name: str, at: float, values: Row) -> Row:
    """All keys in one order; those without a value None."""
    return {"part": part, "of": of, "target": target, "name": name, "at": at} | {key: values.get(key) for key in VALUES}


def _searches(size: Size, found: Mapping[str, Found]) -> Iterator[Row]:
    for of, sizes in (("error", size.error), ("replay", size.replay)):
        for name in TARGETS[of]:
            for vocab, horizon in sizes:
                ratio = found[f"search-{of}-{name}-v{vocab}-t{horizon}"]["ratio"]
                values = {"largest": ratio, "policies": size.draws, "vocab": vocab}
                yield _row("search", of, "free", name, horizon, values)


def _states(size: Size) -> list[tuple[str, str]]:
    return [(router, state) for router in size.routers for state in STATES]


def _margins(size: Size, found: Mapping[str, Found]) -> Iterator[Row]:
    """P(margin < ε) and the flips at noise s of every router and state."""
    counts = dict(zip(STATES, size.margins, strict=True))
    for router, state in _states(size):
        for part, places, key in (("margins", WIDTHS, "thin"), ("flips", SCALES, "flips")):
            for at, each in zip(places, found[f"margins-{router}-{state}"][key], strict=True):
                values = {"ratio": each["value"], "low": each["low"], "high": each["high"], "policies": counts[state]}
                yield _row(part, "routes", state, router, at, values)


def _law(state: tuple[str, str], found: Mapping[str, Found]) -> Row:
    """Whether boundary mass and flips are linear, and flips what margins predict: yes, no, or None where open."""
    router, of = state
    each = found[f"margins-{router}-{of}"]
    slopes = {name: each[name] for name in ("width_slope", "flip_slope", "density", "judged")}
    judged = {f"{name}_holds": _inside(each[name], LINEAR) for name in ("width_slope", "flip_slope")}
    return {"router": router, "state": of} | slopes | judged | {"law_holds": _inside(each["judged"], LAW)}


def _inside(estimate: Mapping[str, Any], within: tuple[float, float]) -> bool | None:
    """Whether an interval lies in a range: no where it lies outside, None where it does neither or has no ends."""
    low, high = estimate["low"], estimate["high"]
    if low is None or high is None:
        return None
    if within[0] <= low and high <= within[1]:
        return True
    return False if high < within[0] or low > within[1] else None


def verdicts(rows: Sequence[Row]) -> list[Row]:
    """Every bound: whether it holds, the largest ratio found and where, whether it is sharp."""
    judged = []
    for of, names in TARGETS.items():
        for name in names:
            mine = [row for row in rows if row["of"] == of and row["name"] == name and row["largest"] is not None]
            worst = max(mine, key=lambda row: float(row["largest"]))
            judged.append(
                {
                    "of": of,
                    "name": name,
                    "holds": worst["largest"] <= 1 + SLACK,
                    "largest": worst["largest"],
                    "part": worst["part"],
                    "at": worst["at"],
                    "vocab": worst["vocab"],
                    "sharp": worst["largest"] >= SHARP,
                }
            )
    return judged


def longest(rows: Sequence[Row]) -> list[Row]:
    """The rows of the longest responses: what each bound says there."""
    found = [row for row in rows if row["part"].startswith("length")]
    most = max(row["at"] for row in found)
    return [row for row in found if row["at"] == most]


def _excess(found: Mapping[str, Found]) -> float:
    """By how much an exact error goes beyond its bound at most, of reward; up to `ROUNDING` it is none."""
    cells = [*found.values(), *found["training"]["rollouts"]]
    return max(
        float(np.max(np.asarray(each["bounded"]) - np.asarray(limit)))
        for cell in cells
        for key, each in cell.items()
        if key.startswith(("error ", "replay "))
        for limit in each["bounds"].values()
    )


def headline(judged: Sequence[Row], laws: Sequence[Row]) -> str:
    """In a sentence: which bounds hold, which are sharp, and what margins say of flips."""
    broken = [row["name"] for row in judged if not row["holds"]]
    sharp = [row["name"] for row in judged if row["of"] == "error" and row["sharp"]]
    loose = [f"{row['name']} {row['largest']:.2f}" for row in judged if row["of"] == "error" and not row["sharp"]]
    start = [row for row in laws if row["state"] == "alone"]
    flips = ", ".join(f"{row['router']} {row['judged']['value']:.2f}" for row in start)
    first = f"broken: {', '.join(broken)}" if broken else f"all {len(judged)} bounds hold"
    return (
        f"{first}; of those on the error sharp: {', '.join(sharp) or 'none'}; largest share of the others: "
        f"{', '.join(loose) or 'none'}; flips over what margins predict, one choice alone: {flips}"
    )


STUDY = Study(
    id="bounds",
    question="How tight are the published bounds on the error, and how often does a thin margin flip?",
    source="arXiv 2512.23075, 2602.04879, 1502.05477, 1705.10528; arXiv 2605.02124 for margins",
    rule=f"a bound holds if no exact error above {SEEN:g} of reward, over random policies of five routers, responses "
    f"of up to {WHOLE.lengths[-1]:,} tokens and a training run, exceeds it by more than {SLACK:g} of it and "
    f"{ROUNDING:g} of reward, and none in a search over free policies and rewards, of bounds above {LEAST:g}, by more "
    f"than {SLACK:g} of it: rounding; it is sharp if a share of {SHARP} is found; the mass of thin margins, and flips "
    "in the noise, are linear if the interval of the slope of their logarithms over the four smallest lies in "
    f"{LINEAR}, and not if it lies outside; flips are what margins predict if their ratio at a noise of 0.01 has its "
    f"interval in {LAW}, and not if it lies outside; else open; on seeds from {SEEDS_FROM}, since those from {FIRST} "
    "were looked at while the tolerance was made",
    answer=_answer,
    first=SEEDS_FROM,
)
