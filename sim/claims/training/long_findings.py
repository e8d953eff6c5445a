"""Empirical: the findings of arXiv 2512.01374 sec. 4 on long responses, each in the conditions that were fixed for it.

Where they are judged on exact expected updates there is no variance, and what is lost is bias; what variance adds is
judged in conditions that say `sampled`. Settings and rules were chosen on seeds 100 to 107.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from firstorder.sim.claims.claim import Claim, Outcome
from firstorder.sim.trials.budget import Budget
from firstorder.sim.trials.compare import final
from firstorder.sim.trials.lengths import lengths
from firstorder.sim.trials.long import LongCondition
from firstorder.sim.trials.statistics import Estimate, bootstrap, middle_mean, seeds_to_settle

from .long import Cells, Judged, Place, ahead, check, fallen, judged, leads_of, place, seeds

PAPER = "arXiv 2512.01374 sec. 4"
HOLDS = "reproduced if it holds in every condition, not reproduced if it is contradicted in every one"
CLOSE = 0.1  # of reward: starts that end this near have converged
STARTS = (0.3, 0.5, 0.7)
HALF = 0.5  # of the seeds

FEW, MANY, MOST = 128, 2048, 8192  # tokens of a response: where the first findings do not show, and where they do
FIXED = LongCondition(updates=48, horizon=MANY)
ANSWERED = LongCondition(
    problems=4,
    updates=64,
    horizon=192,
    value=0.3,
    sim=(("ending", "answer"), ("positions", 64), ("thinking", 1)),
)
COLD = LongCondition(updates=64, horizon=512)
STALE = LongCondition(problems=8, updates=64, horizon=FEW, lr=0.01)
SAMPLED = LongCondition(problems=8, updates=128, horizon=FEW, lr=0.01, minibatches=16, sampled=True)

ABLATIONS = ("minirl-no-is", "minirl-r3", "minirl-r3-no-is")
SQUARES = tuple(f"minirl{replay}{clip}" for replay in ("", "-r2", "-r3") for clip in ("", "-no-clip"))
UPDATES = (2, 4, 8)  # a rollout, on exact expected updates; 16 on samples


def _on_policy(condition: LongCondition, cells: Cells, count: int) -> Judged:
    others = {f"minirl - {name}": name for name in cells if name != "minirl"}
    return ahead(leads_of(cells, "minirl", others), count)


def _no_is(condition: LongCondition, cells: Cells, count: int) -> Judged:
    """Whether more seeds collapse without than with; the lead says how much is lost where nothing collapses."""
    without, having = (fallen(cells[name], condition) for name in ("minirl-no-is", "minirl"))
    numbers = {"collapsed without IS": without, "collapsed with IS": having}
    numbers |= leads_of(cells, "minirl", {"minirl - minirl-no-is": "minirl-no-is"})
    if without.low > having.high:
        return Judged(holds=True, numbers=numbers)
    if without.high < HALF:
        return Judged(holds=False, numbers=numbers)
    gap = without.value - having.value
    apart = Estimate(value=gap, low=gap - (without.value - without.low) - (having.high - having.value), high=1.0)
    below = seeds_to_settle(without, count, HALF) if without.value < HALF else None
    return Judged(holds=None, numbers=numbers, seeds=below or (seeds_to_settle(apart, count) if gap > 0 else None))


def _length_norm(condition: LongCondition, cells: Cells, count: int) -> Judged:
    stable = fallen(cells["minirl-length-norm"], condition)
    leads = leads_of(cells, "minirl", {"minirl - minirl-length-norm": "minirl-length-norm"})
    found = replace(ahead(leads, count), numbers=leads | {"collapsed": stable})
    if stable.low > HALF:
        return replace(found, holds=False, seeds=None)
    if found.holds and stable.high >= HALF:
        return replace(found, holds=None, seeds=seeds_to_settle(stable, count, HALF))
    return found


def _both(replay: str) -> Mapping[str, str]:
    """The other three cells of the square {clip, no clip} x {none, a replay}, by what they leave out."""
    return {
        f"clip and {replay} - {replay} alone": f"minirl-{replay}-no-clip",
        f"clip and {replay} - clip alone": "minirl",
        f"clip and {replay} - neither": "minirl-no-clip",
    }


def _off_policy(condition: LongCondition, cells: Cells, count: int) -> Judged:
    """Clipping with the replay that the paper recommends at this N leads; all else of both squares is reported."""
    r2, r3 = (leads_of(cells, f"minirl-{replay}", _both(replay)) for replay in ("r2", "r3"))
    needed, other = (r2, r3) if condition.minibatches == 2 else (r3, r2)
    found = ahead(needed, count)
    clip = leads_of(cells, "minirl", {"clip alone - neither": "minirl-no-clip"})
    return replace(found, numbers=needed | other | clip)


def _r2_r3(condition: LongCondition, cells: Cells, count: int) -> Judged:
    better, worse = ("minirl-r2", "minirl-r3") if condition.minibatches == 2 else ("minirl-r3", "minirl-r2")
    return ahead(leads_of(cells, better, {f"{better} - {worse}": worse}), count)


def spread(ends: Sequence[Tensor]) -> Estimate:
    """How far apart the interquartile means of several `[S]` are, the largest less the smallest; seeds are paired."""
    return bootstrap([end.numpy() for end in ends], lambda *each: np.ptp([middle_mean(one) for one in each], axis=0))


def _cold_starts(condition: LongCondition, cells: Cells, count: int) -> Judged:
    """Alike under the stable recipe and apart under the unstable one; contradicted if either is settled otherwise."""
    stable, unstable = (spread([final(cells[_of(name, v)]) for v in STARTS]) for name in ("minirl", "minirl-no-is"))
    numbers = {"apart under minirl": stable, "apart under minirl-no-is": unstable}
    if stable.low > CLOSE or unstable.high < CLOSE:
        return Judged(holds=False, numbers=numbers)
    if stable.high < CLOSE < unstable.low:
        return Judged(holds=True, numbers=numbers)
    open_ = [e for e, settled in ((stable, stable.high < CLOSE), (unstable, unstable.low > CLOSE)) if not settled]
    known = [n for e in open_ if (n := seeds_to_settle(e, count, CLOSE)) is not None]
    return Judged(holds=None, numbers=numbers, seeds=max(known) if len(known) == len(open_) else None)


def _of(name: str, value: float) -> str:
    return f"{name} from {value:g}"


def _starts(condition: LongCondition) -> Place:
    names = ("minirl", "minirl-no-is")
    runs = {_of(name, v): (condition.but(value=v), name) for name in names for v in STARTS}
    return Place(condition=condition, runs=runs)


def _with_lengths(budget: Budget) -> Outcome:
    """The verdict on length normalisation, and how far lengths are spread where it starts."""
    places = [place(each, ("minirl", "minirl-length-norm")) for each in LENGTHS]
    outcome = judged(places, _length_norm, budget, seeds(budget))
    of = seeds(budget)
    for each in LENGTHS:
        mean, deviation = lengths(each.world(of), torch.arange(of.start, of.stop))
        found = {"mean": float(mean.mean()), "standard_deviation": float(deviation.mean())}
        outcome.measured["conditions"][str(each)]["tokens_to_begin_with"] = found
    return outcome


ON_POLICY = (
    place(FIXED, ("minirl", *ABLATIONS)),
    place(ANSWERED, ("minirl", *ABLATIONS, "minirl-length-norm")),
    place(FIXED.but(horizon=FEW), ("minirl", *ABLATIONS), counts=False),
)
NO_IS = tuple(
    place(FIXED.but(horizon=horizon, noise=noise), ("minirl", "minirl-no-is"), counts=horizon > FEW)
    for horizon, noise in ((MANY, 0.1), (MOST, 0.02), (FEW, 0.1), (FEW, 0.02))
)
LENGTHS = (ANSWERED, ANSWERED.but(noise=0.2))
OFF_POLICY = (*(place(STALE.but(minibatches=n), SQUARES) for n in UPDATES), place(SAMPLED, SQUARES))
REPLAYS = tuple(place(STALE.but(minibatches=n), ("minirl-r2", "minirl-r3")) for n in UPDATES)
STARTED = (_starts(COLD),)

SHORT, MIDDLE, LONG = 32, 128, 512
EARNING_LITTLE = LongCondition(value=0.15, updates=60, sim=(("evaluate_every", 10),))
IS = tuple(
    place(EARNING_LITTLE.but(horizon=horizon, noise=noise), ("minirl", "minirl-no-is"), counts=horizon > SHORT)
    for horizon, noise in ((SHORT, 0.1), (MIDDLE, 0.1), (LONG, 0.1), (LONG, 0.02))
)


def _importance_sampling(budget: Budget) -> Outcome:
    """On the seeds of the claims about short responses, which it was reported on first."""
    return judged(IS, _on_policy, budget, range(budget.first_seed, budget.first_seed + budget.policies))


CLAIMS = (
    Claim(
        id="training-long-is",
        statement="Where responses are long, training without the train-infer importance sampling ends below MiniRL.",
        source="arXiv 2512.01374 sec. 4; arXiv 2602.01103 (bias, not variance)",
        kind="empirical",
        rule="a condition: the interval of MiniRL's lead in final exact J is above 0, under exact expected updates, at "
        f"T = {MIDDLE} and {LONG}; contradicted if it is below 0; reproduced if it holds in every condition, not "
        "reproduced if it is contradicted in every one; T = 32 is reported beside them",
        check=_importance_sampling,
    ),
    Claim(
        id="training-long-on-policy",
        statement="On-policy (N = 1), on long responses, MiniRL with importance sampling ends above every ablation of "
        "it: no IS, R3, R3 without IS and, where lengths vary, length normalisation.",
        source=PAPER,
        kind="empirical",
        rule="a condition: the interval of its lead in final exact J is above 0 for every alternative; contradicted if "
        f"one is below 0; {HOLDS}; T = {FEW} is reported beside them",
        check=check(ON_POLICY, _on_policy),
    ),
    Claim(
        id="training-long-no-is",
        statement="On-policy, on long responses, training without the train-infer importance sampling collapses.",
        source=PAPER,
        kind="empirical",
        rule="a condition: more seeds collapse without than with, the start counted, their intervals apart; "
        f"contradicted if fewer than half collapse without; {HOLDS}; T = {FEW} is reported beside them",
        check=check(NO_IS, _no_is),
    ),
    Claim(
        id="training-long-length-norm",
        statement="On-policy, where the lengths of responses vary, length normalisation is stable and ends below "
        "MiniRL.",
        source=PAPER,
        kind="empirical",
        rule="a condition: fewer than half of the seeds collapse and MiniRL's lead is above 0; contradicted if more do "
        f"or the lead is below 0; {HOLDS}",
        check=_with_lengths,
    ),
    Claim(
        id="training-long-off-policy",
        statement="Off-policy (N = 2, 4, 8, 16), on long responses, clipping and Routing Replay are both needed.",
        source=PAPER,
        kind="empirical",
        rule="a condition: clipping with replay (R2 at N = 2, R3 above) leads replay alone, clipping alone and "
        f"neither; contradicted if it is behind one; {HOLDS}",
        check=check(OFF_POLICY, _off_policy),
    ),
    Claim(
        id="training-long-r2-r3",
        statement="On long responses, R2 ends above R3 at N = 2, R3 above R2 at N = 4 and 8, both with the clip.",
        source=PAPER,
        kind="empirical",
        rule=f"a condition: the interval of the lead is above 0; contradicted if it is below; {HOLDS}",
        check=check(REPLAYS, _r2_r3),
    ),
    Claim(
        id="training-long-cold-starts",
        statement="Cold starts that earn 0.3, 0.5 and 0.7 end alike under MiniRL and not without importance sampling.",
        source=PAPER,
        kind="empirical",
        rule=f"the largest less the smallest of the three ends: its interval is below {CLOSE} under minirl and above "
        f"it under minirl-no-is; contradicted if either lies on the other side; {HOLDS}",
        check=check(STARTED, _cold_starts),
    ),
)
