"""Empirical: the findings of arXiv 2512.01374 sec. 4, each in every condition that was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from firstorder.sim.claims.claim import Claim, Outcome
from firstorder.sim.trials.budget import Budget, Verdict
from firstorder.sim.trials.compare import (
    every,
    final,
    interquartile_mean,
    lead,
    over_conditions,
    share_collapsed,
    summary,
)
from firstorder.sim.trials.runs import ALWAYS, COLD, OFF_POLICY, STALE, Condition, Series, runs
from firstorder.sim.trials.statistics import Estimate

Cells = Mapping[str, Series]
Judged = tuple[bool | None, dict[str, Estimate]]
"""Whether a finding holds in a condition, None if that stays open, and the numbers behind it."""
PAPER = "arXiv 2512.01374 sec. 4"
CLOSE = 0.1  # of reward: starts that end this near have converged
HOLDS = "reproduced if it holds in every condition, not reproduced if it is contradicted in every one"


def _by_condition(found: Mapping[Condition, Cells], judge: Callable[[Condition, Cells], Judged]) -> Outcome:
    """One verdict from many conditions, with the numbers of each."""
    holds: dict[Condition, bool | None] = {}
    measured: dict[str, Any] = {}
    for condition, cells in found.items():
        holds[condition], numbers = judge(condition, cells)
        measured[str(condition)] = {
            "holds": holds[condition],
            "differences": {name: estimate.json() for name, estimate in numbers.items()},
            "recipes": {name: summary(series) for name, series in cells.items()},
        }
    verdict, headline = over_conditions(holds)
    return Outcome(verdict=verdict, headline=headline, measured={"conditions": measured})


def _most_stable(condition: Condition, cells: Cells) -> Judged:
    leads = {f"minirl - {name}": lead(cells["minirl"], series) for name, series in cells.items() if name != "minirl"}
    return every(list(leads.values())), leads


def _needs_is(condition: Condition, cells: Cells) -> Judged:
    """Collapse is what the paper reports; the lead says how much is lost where nothing collapses."""
    without, with_is = share_collapsed(cells["minirl-no-is"]), share_collapsed(cells["minirl"])
    numbers = {
        "collapsed without IS": without,
        "collapsed with IS": with_is,
        "minirl - minirl-no-is": lead(cells["minirl"], cells["minirl-no-is"]),
    }
    return _collapses(without, with_is), numbers


def _collapses(without: Estimate, having: Estimate) -> bool | None:
    """Whether more seeds collapse without a part than with it; contradicted if fewer than half do without."""
    if without.low > having.high:
        return True
    return False if without.high < 0.5 else None


def _length_norm(condition: Condition, cells: Cells) -> Judged:
    stable = share_collapsed(cells["minirl-length-norm"])
    better = lead(cells["minirl"], cells["minirl-length-norm"])
    numbers = {"collapsed": stable, "minirl - minirl-length-norm": better}
    if stable.low > 0.5 or better.high < 0:
        return False, numbers
    return (True if stable.high < 0.5 and better.low > 0 else None), numbers


def _needs_both(condition: Condition, cells: Cells) -> Judged:
    """Clipping with the replay that the paper recommends at this N, against the other three cells of the square."""
    replay = "r2" if condition.updates == 2 else "r3"
    both = cells[f"minirl-{replay}"]
    others = {f"{replay} without clip": f"minirl-{replay}-no-clip", "clip alone": "minirl", "neither": "minirl-no-clip"}
    leads = {f"clip and {replay} - {name}": lead(both, cells[other]) for name, other in others.items()}
    clip = {
        f"clip, {name}": lead(cells[f"minirl{suffix}"], cells[f"minirl{suffix}-no-clip"])
        for name, suffix in (("no replay", ""), ("R2", "-r2"), ("R3", "-r3"))
    }
    return every(list(leads.values())), leads | clip


def _r2_or_r3(condition: Condition, cells: Cells) -> Judged:
    better, worse = ("minirl-r2", "minirl-r3") if condition.updates == 2 else ("minirl-r3", "minirl-r2")
    ahead = lead(cells[better], cells[worse])
    return every([ahead]), {f"{better} - {worse}": ahead}


def _stale(condition: Condition, cells: Cells) -> Judged:
    """The clip as the cure: theta/old with its mask, which at the first update of a rollout is no correction at all."""
    bare, clipped = share_collapsed(cells["reinforce-n64"]), share_collapsed(cells["minirl-no-is"])
    numbers = {
        "collapsed without ratio and clip": bare,
        "collapsed with the clip": clipped,
        "lead of the clip": lead(cells["minirl-no-is"], cells["reinforce-n64"]),
        "lead of the ratio alone": lead(cells["minirl-no-clip"], cells["reinforce-n64"]),
    }
    return _collapses(bare, clipped), numbers


def _cold_starts(budget: Budget) -> Outcome:
    """How far apart three starts end, under a stable recipe and under one without stabilisers."""
    conditions = runs(budget).of(*COLD, updates=2, longer=3)
    if not conditions:
        return Outcome(verdict="inconclusive", headline="not trained in a quick look", measured={})
    spreads: dict[str, float] = {}
    measured: dict[str, Any] = {}
    for name in COLD:
        ends = {}
        for condition, cells in conditions.items():
            ends[condition.style] = interquartile_mean(final(cells[name]))
        values = [estimate.value for estimate in ends.values()]
        spreads[name] = max(values) - min(values)
        measured[name] = {"spread": spreads[name], "final_j_pi": {style: e.json() for style, e in ends.items()}}
    stable, unstable = (spreads[name] for name in COLD)
    headline = f"three starts end {stable:.2f} apart under {COLD[0]}, {unstable:.2f} under {COLD[1]}"
    verdict: Verdict = "reproduced" if stable <= CLOSE < unstable else "not reproduced"
    return Outcome(verdict=verdict, headline=headline, measured=measured)


def _over(
    judge: Callable[[Condition, Cells], Judged],
    recipes: tuple[str, ...],
    wanted: Callable[[Condition], bool],
) -> Callable[[Budget], Outcome]:
    def check(budget: Budget) -> Outcome:
        conditions = {c: cells for c, cells in runs(budget).of(*recipes).items() if wanted(c)}
        return _by_condition(conditions, judge)

    return check


CLAIMS = (
    Claim(
        id="training-on-policy",
        statement="On-policy (N = 1), MiniRL with importance sampling ends above every ablation of it.",
        source=PAPER,
        kind="empirical",
        rule="a condition: the interval of its lead in final exact J is above 0 for every alternative; contradicted "
        f"if one is below 0; {HOLDS}",
        check=_over(_most_stable, ALWAYS, lambda c: c.updates == 1),
    ),
    Claim(
        id="training-no-is",
        statement="On-policy, training without the train-infer importance sampling collapses.",
        source=PAPER,
        kind="empirical",
        rule="a condition: more seeds collapse without than with, their intervals apart; contradicted if fewer than "
        f"half collapse without; {HOLDS}",
        check=_over(_needs_is, ALWAYS, lambda c: c.updates == 1),
    ),
    Claim(
        id="training-length-norm",
        statement="On-policy, length normalisation is stable and ends below MiniRL.",
        source=PAPER,
        kind="empirical",
        rule="a condition: fewer than half of the seeds collapse and MiniRL's lead is above 0; contradicted if more "
        f"do or the lead is below 0; {HOLDS}",
        check=_over(_length_norm, ALWAYS, lambda c: c.updates == 1),
    ),
    Claim(
        id="training-off-policy",
        statement="Off-policy (N = 2, 4, 8), clipping and Routing Replay are both needed.",
        source=PAPER,
        kind="empirical",
        rule="a condition: clipping with replay (R2 at N = 2, R3 above) leads replay alone, clipping alone and "
        f"neither; contradicted if it is behind one; {HOLDS}",
        check=_over(_needs_both, OFF_POLICY, lambda c: c.updates > 1),
    ),
    Claim(
        id="training-stale",
        statement="Far off-policy (N = 64), training with neither ratio nor clip collapses; with the clip it does not.",
        source="this project, on the paper's finding that off-policy training needs clipping",
        kind="empirical",
        rule="a condition: more seeds collapse without than with, their intervals apart; contradicted if fewer than "
        f"half collapse without; {HOLDS}",
        check=_over(_stale, STALE, lambda c: c.updates == 64),
    ),
    Claim(
        id="training-r2-r3",
        statement="R2 ends above R3 at N = 2, R3 above R2 at N = 4 and 8.",
        source=PAPER,
        kind="empirical",
        rule=f"a condition: the interval of the lead is above 0; contradicted if it is below; {HOLDS}",
        check=_over(_r2_or_r3, OFF_POLICY, lambda c: c.updates > 1),
    ),
    Claim(
        id="training-cold-starts",
        statement="Three cold starts converge under the stable recipe and not under an unstable one.",
        source=PAPER,
        kind="empirical",
        rule=f"reproduced if the final J of three demonstration styles lie within {CLOSE} under {COLD[0]} and not "
        f"under {COLD[1]}, at N = 2",
        check=_cold_starts,
    ),
)
