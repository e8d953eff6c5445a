"""How a finding about training is judged on long responses: in several conditions, with the seeds that would settle it.

Runs follow exact expected updates, the limit of an infinite batch, but where a condition says `sampled`. Settings and
rules were chosen on seeds below 1000.

Shapes: S seeds, K exact evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from firstorder.sim.claims.claim import Outcome
from firstorder.sim.trials.budget import Budget
from firstorder.sim.trials.collapse import collapsed
from firstorder.sim.trials.compare import lead, over_conditions, summary
from firstorder.sim.trials.long import LongCondition, course
from firstorder.sim.trials.runs import Series, gathered, is_quick
from firstorder.sim.trials.statistics import Estimate, seeds_to_settle, share

FIRST, QUICK_FIRST = 2000, 500  # seeds of verdicts, and of first looks
SEEDS, QUICK_SEEDS = 8, 3
SHORTER = 4  # how many times fewer updates a first look makes
Cells = Mapping[str, Series]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a finding came to in a condition.

    Args:
        holds: whether it holds, False where it is contradicted, None where that stays open.
        numbers: what the rule compared, by name.
        seeds: how many would settle it if values and spread stayed as they are; None if it is settled or none would.
    """

    holds: bool | None
    numbers: Mapping[str, Estimate]
    seeds: int | None = None


Judge = Callable[[LongCondition, Cells, int], Judged]
"""From the condition, its runs by name, and how many seeds they have."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a finding is judged.

    Args:
        condition: what its name says.
        runs: the condition and the recipe of each run, by the name that a judge knows it under.
        counts: whether the verdict rests on it; else it is reported beside those it rests on.
    """

    condition: LongCondition
    runs: Mapping[str, tuple[LongCondition, str]]
    counts: bool = True


def place(condition: LongCondition, recipes: Sequence[str], *, counts: bool = True) -> Place:
    """Recipes side by side in one condition, each under its own name."""
    return Place(condition=condition, runs={name: (condition, name) for name in recipes}, counts=counts)


def seeds(budget: Budget) -> range:
    """The policies that verdicts are reported on, or those of a first look."""
    first, count = (QUICK_FIRST, QUICK_SEEDS) if is_quick(budget) else (FIRST, SEEDS)
    return range(first, first + count)


def judged(places: Sequence[Place], judge: Judge, budget: Budget, of: range) -> Outcome:
    """Train what the budget's folder does not hold yet, and make one verdict of all places."""
    shorter = SHORTER if is_quick(budget) else 1

    def cut(condition: LongCondition) -> LongCondition:
        return condition.but(updates=condition.updates // shorter)

    wanted = {(cut(c), name): cut(c).cell(name, of) for each in places for c, name in each.runs.values()}
    found = gathered(wanted, budget.folder)
    holds: dict[str, bool | None] = {}
    needed: list[int | None] = []
    measured: dict[str, Any] = {}
    for each in places:
        cells = {title: found[cut(c)][name] for title, (c, name) in each.runs.items()}
        starts = {title: cut(c) for title, (c, _) in each.runs.items()}
        result = judge(cut(each.condition), cells, len(of))
        if each.counts:
            holds[str(each.condition)] = result.holds
            needed += [result.seeds] if result.holds is None else []
        measured[str(each.condition)] = {
            "holds": result.holds,
            "counts": each.counts,
            "seeds": len(of),
            "seeds_to_settle": result.seeds,
            "differences": {name: estimate.json() for name, estimate in result.numbers.items()},
            "recipes": {
                title: summary(series) | {"collapsed": fallen(series, starts[title]).json()}
                for title, series in cells.items()
            },
        }
    verdict, headline = over_conditions(holds)
    return Outcome(verdict=verdict, headline=headline + _open(needed), measured={"conditions": measured})


def check(places: Sequence[Place], judge: Judge) -> Callable[[Budget], Outcome]:
    """The check of a claim that is reported on the seeds of this module."""
    return lambda budget: judged(places, judge, budget, seeds(budget))


def fallen(series: Series, condition: LongCondition) -> Estimate:
    """Share of seeds that collapsed; what a policy starts with is what it can lose."""
    return share(collapsed(course(series["exact/j_pi"], condition.value)))


def ahead(leads: Mapping[str, Estimate], count: int) -> Judged:
    """A finding that holds if all leads are above 0 and is contradicted if one is below.

    The seeds that would settle it: the fewest that would bring a lead below 0, if one has its value there, else as many
    as bring all of them above.
    """
    values = list(leads.values())
    if any(each.high < 0 for each in values):
        return Judged(holds=False, numbers=leads)
    if all(each.low > 0 for each in values):
        return Judged(holds=True, numbers=leads)
    needed = {name: seeds_to_settle(each, count) for name, each in leads.items() if each.low <= 0}
    against = [needed[name] for name in needed if leads[name].value < 0]
    return Judged(holds=None, numbers=leads, seeds=_least(against) if against else _most(list(needed.values())))


def leads_of(cells: Cells, better: str, others: Mapping[str, str]) -> dict[str, Estimate]:
    """The lead of one run over others, `others` by what they are called."""
    return {title: lead(cells[better], cells[name]) for title, name in others.items()}


def _least(needed: Sequence[int | None]) -> int | None:
    return min((n for n in needed if n is not None), default=None)


def _most(needed: Sequence[int | None]) -> int | None:
    known = [n for n in needed if n is not None]
    return max(known) if known and len(known) == len(needed) else None


def _open(needed: Sequence[int | None]) -> str:
    """How many seeds would settle what is open, in a phrase."""
    if not needed:
        return ""
    most = _most(needed)
    return f"; about {most} seeds would settle the rest" if most else "; no number of seeds is in sight for the rest"
