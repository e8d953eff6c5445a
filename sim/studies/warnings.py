"""What warns of a collapse, how early, and what only looks as if it did: the alarms of `firstorder train --alarm`.

Runs follow sampled updates, as real ones do, in conditions in which some collapse and others do not. Whatever a run
logs is a candidate, and so is how it changes. The table that the package ships is `measured["table"]` of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from firstorder import __version__
from firstorder.core import progress
from firstorder.core.runs.alarm import column, quotient, read
from firstorder.core.runs.alarm_table import (
    BEGINNING,
    SCHEMA,
    Fit,
    HeldOut,
    Interval,
    Range,
    Regime,
    Table,
    window_steps,
)
from firstorder.core.runs.logs import Line, history
from firstorder.sim.trials.collapse import onset
from firstorder.sim.trials.long import LongCondition, course
from firstorder.sim.trials.runs import trained

from .candidates import CANDIDATES, Candidate
from .foresight import AHEAD, FALSE_ALARMS, Fitted, Observed, excess, fit, foreseen
from .study import Answer, Plan, Study

UPDATES = 96
EVERY = 4  # updates between exact evaluations
AUC, HITS = 0.7, 0.3  # what an alarm must reach on conditions that it was not fitted on
BOTH = ("minirl", "minirl-no-is")
THREE = (*BOTH, "minirl-r3")
STALE = (*THREE, "minirl-no-clip")


def condition(horizon: int, noise: float, lr: float, minibatches: int = 1) -> LongCondition:
    """Sampled updates, with an exact evaluation after every `EVERY` of them."""
    return LongCondition(
        horizon=horizon,
        noise=noise,
        lr=lr,
        minibatches=minibatches,
        updates=UPDATES,
        sampled=True,
        sim=(("evaluate_every", max(1, EVERY // minibatches)), ("checkpoint_every", UPDATES // minibatches)),
    )


CONDITIONS: Mapping[LongCondition, tuple[str, ...]] = {
    condition(64, 0.5, 4e-3): BOTH,
    condition(64, 0.3, 4e-3): BOTH,
    condition(64, 0.2, 4e-3): BOTH,
    condition(64, 0.3, 3e-3, minibatches=4): STALE,
    condition(128, 0.1, 2e-3): THREE,
    condition(128, 0.2, 2e-3): BOTH,
    condition(128, 0.3, 1e-3): THREE,
    condition(128, 0.3, 2e-3, minibatches=4): STALE,
    condition(256, 0.3, 5e-4): THREE,
    condition(256, 0.3, 1e-3): BOTH,
    condition(256, 0.2, 2e-3): BOTH,
    condition(256, 0.02, 2e-3): BOTH,
    condition(512, 0.3, 1e-3): BOTH,
    condition(512, 0.1, 2e-3): BOTH,
}
"""What is trained where: lengths, discrepancies and steps between those at which nothing happens and those at which a
policy is lost within its first updates, where nothing could warn."""
QUICK = dict.fromkeys((condition(64, 0.5, 4e-3), condition(64, 0.3, 4e-3), condition(64, 0.2, 2e-3)), BOTH)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The runs of one cell: one condition, one recipe, S seeds.

    Args:
        condition: where.
        recipe: its name.
        place: of the condition in the design.
        lines: what they logged, both logs together.
        onset: int64 `[S]`, updates done at the first evaluation of the collapse, -1 where there is none.
        seeds: int64 `[S]`.
    """

    condition: LongCondition
    recipe: str
    place: int
    lines: Sequence[Line]
    onset: Tensor
    seeds: Tensor

    def beginning(self, name: str) -> Tensor:
        """The mean of a quantity over the first updates, `[S]`."""
        first = column(self.lines[: max(1, BEGINNING // self.condition.minibatches)], name)
        assert first is not None
        return first.nanmean(-1)


def collected(design: Mapping[LongCondition, Sequence[str]], plan: Plan) -> list[Runs]:
    """Train what the folder does not hold yet, and read what was logged."""
    cells = {(each, name): each.cell(name, plan.seeds) for each, names in design.items() for name in names}
    trained(list(cells.values()), plan.folder)
    places = {each: place for place, each in enumerate(design)}
    return [
        Runs(
            condition=each,
            recipe=name,
            place=places[each],
            lines=(lines := list(history(plan.folder / "cells" / cell.name))),
            onset=collapse(lines, each),
            seeds=torch.arange(plan.seeds.start, plan.seeds.stop),
        )
        for (each, name), cell in cells.items()
    ]


def collapse(lines: Sequence[Line], where: LongCondition) -> Tensor:
    """Updates done at the first evaluation of a collapse, which may lose what a run begins with; -1 for none, `[S]`."""
    evaluated = [line for line in lines if "exact/j_pi" in line]
    done = torch.tensor([0, *((line["step"] + 1) * where.minibatches for line in evaluated)])
    j = column(evaluated, "exact/j_pi")
    assert j is not None
    first = onset(course(j, where.value))
    return torch.where(first < 0, -1, done[first.clamp(min=0)])


def readings(runs: Runs, reads: Candidate) -> Tensor:
    """What an alarm would read after each update, `[S, U]`; NaN where it reads nothing."""
    out = torch.full((len(runs.seeds), runs.condition.updates), torch.nan, dtype=torch.float64)
    values = quotient(runs.lines, reads)
    if values is None:
        return out
    n, first = runs.condition.minibatches, max(1, BEGINNING // runs.condition.minibatches)
    width = window_steps(reads, n)
    known = read(values.unfold(-1, width, 1), values[:, None, :first], reads, n)
    skipped = first if reads.of == "change" else 0
    done = torch.arange(width + skipped, values.shape[-1] + 1) * n
    out[:, done - 1] = known[:, skipped:]
    return out


def scores(reading: Tensor, reads: Candidate) -> Tensor:
    """Signed so that more is worse, in logarithms on a log scale."""
    s = reading.clamp(min=0.0).log() if reads.scale == "log" else reading
    return s if reads.side == "high" else -s


def observed(runs: Sequence[Runs], reads: Candidate) -> Observed:
    """The runs that log the quantity; all, without a reading, where none does."""
    seen = [(each, scores(readings(each, reads), reads)) for each in runs]
    seen = [(each, s) for each, s in seen if not s.isnan().all()]
    seen = seen or [(each, scores(readings(each, reads), reads)) for each in runs]
    longest = max(s.shape[-1] for _, s in seen)
    return Observed(
        scores=torch.cat([pad(s, (0, longest - s.shape[-1]), value=torch.nan) for _, s in seen]),
        onset=torch.cat([each.onset for each, _ in seen]),
        features=torch.cat([_features(each) for each, _ in seen]),
        seeds=torch.cat([each.seeds for each, _ in seen]),
        conditions=torch.cat([torch.full_like(each.seeds, each.place) for each, _ in seen]),
    )


def _features(runs: Runs) -> Tensor:
    length, entropy = runs.beginning("response_length"), runs.beginning("update/entropy")
    return torch.stack([length, torch.full_like(length, runs.condition.minibatches), entropy], dim=-1).log()


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a candidate is worth.

    Args:
        reads: the candidate.
        seeds: on seeds that the threshold was not fitted on, None where there is nothing to say.
        conditions: on conditions that it was not fitted on.
        fitted: the threshold of all runs.
    """

    reads: Candidate
    seeds: HeldOut | None
    conditions: HeldOut | None
    fitted: Fitted | None

    @property
    def passes(self) -> bool:
        """Whether it becomes an alarm, by the rule."""
        known = self.conditions
        return (
            known is not None
            and self.fitted is not None
            and known.auc.low > AUC
            and known.hits.value >= HITS
            and known.false_alarms.low <= FALSE_ALARMS
        )

    def row(self) -> dict[str, Any]:
        """A line of the table."""
        on, off = self.conditions, self.seeds
        lead = None if on is None else on.lead
        return {
            "quantity": self.reads.name,
            **_interval("auc", None if on is None else on.auc),
            **_interval("auc_seeds", None if off is None else off.auc),
            **_interval("auc_within", None if on is None else on.within),
            **_interval("hits", None if on is None else on.hits),
            **_interval("false_alarms", None if on is None else on.false_alarms),
            "lead": None if lead is None else lead.median,
            "lead_low": None if lead is None else lead.low,
            "lead_high": None if lead is None else lead.high,
            "collapsed": None if on is None else on.collapsed,
            "stable": None if on is None else on.stable,
            "alarm": self.passes,
        }


def judged(runs: Sequence[Runs], reads: Candidate) -> Judged:
    """A candidate on held-out seeds, and on held-out conditions."""
    seen = observed(runs, reads)
    by_seed, by_condition = excess(seen, seen.seeds), excess(seen, seen.conditions)
    return Judged(
        reads=reads,
        seeds=None if by_seed is None else foreseen(seen, by_seed),
        conditions=None if by_condition is None else foreseen(seen, by_condition),
        fitted=fit(seen),
    )


def chosen(found: Sequence[Judged]) -> list[Judged]:
    """Those that become alarms: of each quantity the one whose AUC is certainly largest."""
    best: dict[str, Judged] = {}
    for each in found:
        other = best.get(each.reads.quantity)
        if each.passes and (other is None or _sure(each) > _sure(other)):
            best[each.reads.quantity] = each
    return sorted(best.values(), key=_sure, reverse=True)


def table(runs: Sequence[Runs], found: Sequence[Judged], standing: str) -> dict[str, Any]:
    """The table of alarms, as the package ships it."""
    alarms = [
        each.reads.alarm(each.fitted.threshold(each.reads.side), each.conditions)
        for each in chosen(found)
        if each.fitted is not None and each.conditions is not None
    ]
    seeds = torch.cat([each.seeds for each in runs])
    made = Table.model_validate(
        {
            "schema": SCHEMA,
            "false_alarms": FALSE_ALARMS,
            "regime": Regime(
                response_length=_range(runs, "response_length"),
                minibatches=Range(
                    low=min(each.condition.minibatches for each in runs),
                    high=max(each.condition.minibatches for each in runs),
                ),
                entropy=_range(runs, "update/entropy"),
                k3_kl=_range(runs, "k3_kl"),
            ),
            "fit": Fit(
                version=__version__,
                seeds=(int(seeds.min()), int(seeds.max())),
                updates=max(each.condition.updates for each in runs),
                conditions=tuple(f"{each.condition}, {each.recipe}" for each in runs),
                rule=RULE,
                standing=standing,
            ),
            "together": together(runs, chosen(found)),
            "alarms": tuple(alarms),
        }
    )
    return made.model_dump(mode="json", by_alias=True)


def together(runs: Sequence[Runs], alarms: Sequence[Judged]) -> HeldOut | None:
    """All alarms as one, which warns where any does, on held-out conditions; over the runs that log all of them."""
    every = [observed(runs, each.reads) for each in alarms]
    parts = [e for seen in every if (e := excess(seen, seen.conditions)) is not None]
    if not parts or len({len(e) for e in parts}) > 1:
        return None
    worst = torch.stack(parts).nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(0)
    return foreseen(every[0], worst)


def _range(runs: Sequence[Runs], name: str) -> Range:
    values = torch.cat([each.beginning(name) for each in runs])
    return Range(low=float(values.min()), high=float(values.max()))


def _sure(each: Judged) -> float:
    assert each.conditions is not None
    return each.conditions.auc.low


def _interval(name: str, known: Interval | None) -> dict[str, float | None]:
    ends = (None, None, None) if known is None else (known.value, known.low, known.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))


def _answer(plan: Plan) -> Answer:
    runs = collected(QUICK if plan.quick else CONDITIONS, plan)
    found = [judged(runs, reads) for reads in progress.steps("quantities", CANDIDATES)]
    alarms = chosen(found)
    collapsed = sum(int((each.onset >= 0).sum()) for each in runs)
    total = sum(len(each.seeds) for each in runs)
    headline = f"{len(alarms)} of {len(found)} ways to read a log warn; {collapsed} of {total} runs collapse"
    if alarms:
        headline += f"; best: {alarms[0].reads.name}"
    onsets = {f"{each.condition}, {each.recipe}": each.onset.tolist() for each in runs}
    standing = f"{'a first look' if plan.quick else 'fitted'} on seeds {plan.seeds[0]} to {plan.seeds[-1]}"
    measured = {"table": table(runs, found, standing), "onsets": onsets}
    rows = sorted((each.row() for each in found), key=lambda row: -(row["auc_low"] or 0.0))
    return Answer(headline=headline, rows=rows, measured=measured)


RULE = (
    f"a run collapses where J of π is below half of its best at 3 evaluations in a row, {EVERY} updates apart; a "
    f"threshold is what {FALSE_ALARMS:.0%} of the stable runs go beyond; on conditions that it was not fitted on, left "
    f"out one at a time with all recipes, the interval of the AUC {AHEAD} updates before a collapse lies above {AUC}, "
    f"at least {HITS:.0%} of the collapses are warned of, and the "
    f"interval of the false-alarm rate does not lie above {FALSE_ALARMS:.0%}; of several readings of a quantity the "
    "one whose interval of the AUC begins highest. Intervals: 95 %, bootstrap over the seeds in conditions; of rates "
    "the wider of that and the exact binomial one"
)
STUDY = Study(
    id="warnings",
    question="Which logged quantities warn of a collapse, how early, and beyond which thresholds?",
    source="what training logs are watched for: KL, effective sample sizes, entropy, gradient norms",
    rule=RULE,
    answer=_answer,
)
