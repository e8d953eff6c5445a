"""Where each finding of the paper begins to hold: its border along one axis at a time, from the base condition.

Runs follow exact expected updates, so that nothing of a border is luck of the samples. Length, accuracy of the cold
start and how often a response comes back to a context are moved apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from firstorder.sim.trials.calibrate import mismatch
from firstorder.sim.trials.collapse import collapsed
from firstorder.sim.trials.compare import final, interquartile_mean, lead
from firstorder.sim.trials.long import LongCondition, course
from firstorder.sim.trials.runs import Series, gathered
from firstorder.sim.trials.statistics import Estimate, share

from .bisection import Axis, Search, searched
from .study import Answer, Plan, Study

WORTH = 0.05  # of reward: a lead below it is not one that a user would change a recipe for
HALF = 0.5  # of the seeds
CLOSE = 0.1  # of reward: starts that end this near have converged
BASE = LongCondition(problems=8, updates=64)
CONTEXTS = 64  # problems times positions, kept as positions are moved
STARTS = (0.3, 0.5, 0.7)
ANSWERS = (("ending", "answer"), ("positions", 32), ("thinking", 1))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a finding came to at a point: whether it holds there, and the number behind it."""

    holds: bool
    value: Estimate
    of: str


Judge = Callable[[Mapping[str, Series], LongCondition], Reading]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A finding of the paper.

    Args:
        statement: in a sentence, with the rule at a point.
        recipes: what it compares.
        judge: from their runs in a condition.
        base: the condition that axes depart from.
        axes: those that it is searched along.
        starts: J of π of the cold starts that are compared, in place of recipes; none for that of the condition.
    """

    statement: str
    recipes: tuple[str, ...]
    judge: Judge
    base: LongCondition = BASE
    axes: tuple[str, ...] = ("horizon", "horizon at this accuracy", "value", "returns", "noise", "lr", "minibatches")
    starts: tuple[float, ...] = ()

    def runs(self, condition: LongCondition) -> dict[str, tuple[LongCondition, str]]:
        """What is trained at a point, by the name that `judge` knows it under."""
        if not self.starts:
            return {recipe: (condition, recipe) for recipe in self.recipes}
        (recipe,) = self.recipes
        return {f"{value:g}": (condition.but(value=value), recipe) for value in self.starts}


@dataclass(frozen=True, kw_only=True)
class Along:
    """An axis, the condition at each point of it, and the point of a condition."""

    axis: Axis
    at: Callable[[LongCondition, float], LongCondition]
    of: Callable[[LongCondition], float]


def _accuracy(base: LongCondition, horizon: float) -> LongCondition:
    """Longer responses of policies that err as often a token."""
    return base.but(horizon=int(horizon), value=float(f"{base.value ** (horizon / base.horizon):.4g}"))


def _returns(base: LongCondition, returns: float) -> LongCondition:
    """The same length and number of contexts, each come to so many times by a response that is never lost."""
    positions = max(2, round(base.horizon / returns))
    return base.but(problems=max(1, CONTEXTS // positions), sim=(("positions", positions),))


AXES: Mapping[str, Along] = {
    "horizon": Along(
        axis=Axis(low=32, high=32768, whole=True),
        at=lambda base, x: base.but(horizon=int(x)),
        of=lambda base: base.horizon,
    ),
    "horizon at this accuracy": Along(
        axis=Axis(low=32, high=1024, whole=True),
        at=_accuracy,
        of=lambda base: base.horizon,
    ),
    "value": Along(
        axis=Axis(low=0.1, high=0.9, ratio=1.25),
        at=lambda base, x: base.but(value=x),
        of=lambda base: base.value,
    ),
    "returns": Along(
        axis=Axis(low=16, high=128, ratio=2.0, whole=True),
        at=_returns,
        of=lambda base: base.horizon * base.problems / CONTEXTS,
    ),
    "noise": Along(
        axis=Axis(low=0.003, high=0.5),
        at=lambda base, x: base.but(noise=x),
        of=lambda base: base.noise,
    ),
    "lr": Along(
        axis=Axis(low=2e-4, high=0.02),
        at=lambda base, x: base.but(lr=x),
        of=lambda base: base.lr,
    ),
    "minibatches": Along(
        axis=Axis(low=1, high=16, ratio=2.0, whole=True),
        at=lambda base, x: base.but(minibatches=int(x)),
        of=lambda base: base.minibatches,
    ),
}


def _collapsed(series: Series, condition: LongCondition) -> Tensor:
    return collapsed(course(series["exact/j_pi"], condition.value))


def _no_is(cells: Mapping[str, Series], condition: LongCondition) -> Reading:
    """Collapse without the train-infer factor, where it does not collapse with it."""
    without, having = (share(_collapsed(cells[name], condition)) for name in ("minirl-no-is", "minirl"))
    holds = without.value >= HALF > having.value
    return Reading(holds=holds, value=without, of="share of seeds that collapse without it")


def _lead(better: str, worse: str) -> Judge:
    def judge(cells: Mapping[str, Series], condition: LongCondition) -> Reading:
        ahead = lead(cells[better], cells[worse])
        return Reading(holds=ahead.low > WORTH, value=ahead, of=f"{better} - {worse}")

    return judge


def _best(cells: Mapping[str, Series], condition: LongCondition) -> Reading:
    """The smallest of the leads over the ablations."""
    return min(
        (_lead("minirl", name)(cells, condition) for name in cells if name != "minirl"),
        key=lambda reading: reading.value.low,
    )


def _both(replay: str) -> Judge:
    """Clipping with replay against the other three cells of the square: the smallest lead."""

    def judge(cells: Mapping[str, Series], condition: LongCondition) -> Reading:
        both = f"minirl-{replay}"
        others = (f"minirl-{replay}-no-clip", "minirl", "minirl-no-clip")
        return min((_lead(both, other)(cells, condition) for other in others), key=lambda reading: reading.value.low)

    return judge


def _alike(cells: Mapping[str, Series], condition: LongCondition) -> Reading:
    """How far apart the starts end."""
    ends = [interquartile_mean(final(series)) for series in cells.values()]
    low, high = (pick(ends, key=lambda end: end.value) for pick in (min, max))
    spread = Estimate(value=high.value - low.value, low=max(0.0, high.low - low.high), high=high.high - low.low)
    return Reading(holds=spread.value <= CLOSE, value=spread, of=f"spread of J at the end over starts {STARTS}")


LONG, CLOSE_ENGINES, PUBLISHED = BASE.but(horizon=2048), BASE.but(noise=0.02), BASE.but(noise=0.005)
STALE = BASE.but(minibatches=8, lr=0.005)
FINDINGS: Mapping[str, Finding] = {
    "best": Finding(
        statement="On-policy, MiniRL with importance sampling ends above its ablations "
        f"(every lead's interval above {WORTH})",
        recipes=("minirl", "minirl-no-is", "minirl-r3-no-is", "minirl-r3"),
        judge=_best,
        axes=("horizon", "noise", "lr", "minibatches"),
    ),
    "is": Finding(
        statement=f"MiniRL with importance sampling ends above itself without it (the lead's interval above {WORTH})",
        recipes=("minirl", "minirl-no-is"),
        judge=_lead("minirl", "minirl-no-is"),
    ),
    "collapse": Finding(
        statement="Without importance sampling training collapses (in half of the seeds, and in fewer with it)",
        recipes=("minirl", "minirl-no-is"),
        judge=_no_is,
    ),
    "collapse-long": Finding(
        statement=f"As collapse, from {LONG.horizon} tokens",
        recipes=("minirl", "minirl-no-is"),
        judge=_no_is,
        base=LONG,
        axes=("value", "noise", "lr", "minibatches"),
    ),
    "collapse-close": Finding(
        statement=f"As collapse, engines of relative noise {CLOSE_ENGINES.noise:g}",
        recipes=("minirl", "minirl-no-is"),
        judge=_no_is,
        base=CLOSE_ENGINES,
        axes=("horizon",),
    ),
    "collapse-published": Finding(
        statement=f"As collapse, engines of relative noise {PUBLISHED.noise:g}, about the KL published for "
        "Qwen3-30B-A3B (arXiv 2510.11370)",
        recipes=("minirl", "minirl-no-is"),
        judge=_no_is,
        base=PUBLISHED,
        axes=("horizon",),
    ),
    "length": Finding(
        statement=f"Length normalisation ends below MiniRL (the lead's interval above {WORTH})",
        recipes=("minirl", "minirl-length-norm"),
        judge=_lead("minirl", "minirl-length-norm"),
        base=BASE.but(problems=2, sim=ANSWERS),
        axes=("horizon", "value", "noise", "lr", "minibatches"),
    ),
    **{
        f"clip-{replay.lower()}": Finding(
            statement=f"Off-policy, clipping with {replay} ends above clipping alone, {replay} alone and neither "
            f"(every lead's interval above {WORTH})",
            recipes=tuple(
                f"minirl{part}" for part in (f"-{replay.lower()}", f"-{replay.lower()}-no-clip", "", "-no-clip")
            ),
            judge=_both(replay.lower()),
            base=STALE,
            axes=("horizon", "noise", "lr", "minibatches"),
        )
        for replay in ("R2", "R3")
    },
    "starts": Finding(
        statement=f"Cold starts of J = {', '.join(map(str, STARTS))} end within {CLOSE} of each other under MiniRL",
        recipes=("minirl",),
        judge=_alike,
        axes=("horizon", "noise", "lr", "minibatches"),
        starts=STARTS,
    ),
    "starts-no-is": Finding(
        statement=f"The same starts end within {CLOSE} of each other without importance sampling",
        recipes=("minirl-no-is",),
        judge=_alike,
        axes=("horizon", "noise"),
        starts=STARTS,
    ),
}


def _answer(plan: Plan) -> Answer:
    """Search every finding along every axis, round by round."""
    wanted = {f"{name} / {axis}": (name, axis) for name, found in FINDINGS.items() for axis in found.axes}
    if plan.quick:
        wanted = {key: value for key, value in wanted.items() if key == "collapse / horizon"}
    readings: dict[str, dict[float, Reading]] = {key: {} for key in wanted}

    def ask(points: Mapping[str, float]) -> dict[str, bool]:
        for key, reading in _at({key: (*wanted[key], point) for key, point in points.items()}, plan).items():
            readings[key][points[key]] = reading
        return {key: readings[key][points[key]].holds for key in points}

    found = searched({key: _axis(*wanted[key], plan) for key in wanted}, ask)
    rows = [row for key, search in found.items() for row in _rows(*wanted[key], search, readings[key])]
    points = {key: [_point(x, reading) for x, reading in sorted(readings[key].items())] for key in found}
    seen = sum(bool(search.borders) for search in found.values())
    bases = {name: str(finding.base) for name, finding in FINDINGS.items()}
    apart = _kl(plan)
    measured = {"bases": bases, "kl": apart, "points": points, "borders": _shipped(rows, apart)}
    return Answer(headline=f"{seen} of {len(found)} searches find a border", rows=rows, measured=measured)


def _shipped(rows: Sequence[Mapping[str, Any]], kl: Mapping[str, float]) -> list[dict[str, Any]]:
    """The borders that the trial of `promote` reads: lengths from which training without importance sampling collapses,
    at each discrepancy."""
    return [
        {"finding": "collapse", "axis": "horizon", "base": str(FINDINGS[row["finding"]].base)}
        | {"kl": kl[row["finding"]], "low": row["below"], "high": row["above"]}
        for row in rows
        if row["finding"] in ("collapse", "collapse-close", "collapse-published")
        and row["axis"] == "horizon"
        and row["holds_above"]
    ]


def _axis(finding: str, name: str, plan: Plan) -> Axis:
    """The range, and in it the base; a first look knows a border within a factor of 4."""
    if plan.quick:
        return Axis(low=128, high=2048, ratio=4, whole=True)
    along, base = AXES[name], FINDINGS[finding].base
    return replace(along.axis, inside=float(along.of(base)))


def _kl(plan: Plan) -> dict[str, float]:
    """KL(μ ‖ π) a response token at the start, nats, the mean over policies, of every base."""
    seeds = torch.arange(plan.seeds.start, plan.seeds.stop)
    return {name: float(mismatch(found.base.world(plan.seeds), seeds)[0].mean()) for name, found in FINDINGS.items()}


def _at(points: Mapping[str, tuple[str, str, float]], plan: Plan) -> dict[str, Reading]:
    """What each finding comes to at a point of an axis; runs that several ask for are trained once."""
    wanted = {
        key: (FINDINGS[name], condition, FINDINGS[name].runs(condition))
        for key, (name, axis, x) in points.items()
        for condition in [AXES[axis].at(FINDINGS[name].base, x)]
    }
    runs = {run: run[0].cell(run[1], plan.seeds) for *_, named in wanted.values() for run in named.values()}
    found = gathered(runs, plan.folder, logs=False)
    return {
        key: finding.judge({name: found[run[0]][run[1]] for name, run in named.items()}, condition)
        for key, (finding, condition, named) in wanted.items()
    }


def _rows(name: str, axis: str, search: Search, readings: Mapping[float, Reading]) -> list[dict[str, Any]]:
    """A search in a line for each border; where there is none, the range in which it was looked for, and the widest
    interval of a point, which a border could have hidden in."""
    low, high = min(search.asked), max(search.asked)
    widest = max(reading.value.high - reading.value.low for reading in readings.values())
    shared = {"finding": name, "axis": axis, "low": low, "high": high, "widest_interval": widest}
    none = {"border": None, "below": None, "above": None, "holds_above": None, "holds": search.asked[low]}
    found = [shared | asdict(border) | {"border": border.at, "holds": None} for border in search.borders]
    return found or [shared | none]


def _point(x: float, reading: Reading) -> dict[str, Any]:
    return {"at": x, "holds": reading.holds, "of": reading.of} | asdict(reading.value)


STUDY = Study(
    id="regimes",
    question="Where does each finding begin to hold, in length, accuracy, repetition, discrepancy, step size and N?",
    source="arXiv 2512.01374 sec. 4",
    rule="along one axis at a time from a base condition, 8 seeds, exact expected updates, the ends and the base asked "
    "first; a border lies between two points at which the finding's own rule says yes and no: "
    + "; ".join(f"{name}: {found.statement}" for name, found in FINDINGS.items()),
    answer=_answer,
)
