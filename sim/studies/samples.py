"""Whether the border of importance sampling, found on exact expected updates, is one of updates over samples too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from firstorder.sim.trials.collapse import collapsed
from firstorder.sim.trials.compare import final, interquartile_mean, lead
from firstorder.sim.trials.long import LongCondition, course
from firstorder.sim.trials.runs import Series, gathered
from firstorder.sim.trials.statistics import seeds_to_settle, share

from .regimes import BASE, WORTH
from .study import Answer, Plan, Study

RECIPES = ("minirl", "minirl-no-is")
SEEDS = 16
SAMPLED = BASE.but(sampled=True, lr=0.0005, updates=2000)
SIDES = (64, 256)  # tokens: on either side of the border that `regimes` finds along the length
QUICK = SAMPLED.but(updates=24)


def _answer(plan: Plan) -> Answer:
    """Train both recipes on both sides, and read their leads."""
    sampled, count = (QUICK, len(plan.seeds)) if plan.quick else (SAMPLED, SEEDS)
    seeds = range(plan.seeds.start, plan.seeds.start + count)
    sides = [sampled.but(horizon=horizon) for horizon in SIDES]
    found = gathered({(side, name): side.cell(name, seeds) for side in sides for name in RECIPES}, plan.folder)
    rows = [_row(side, found[side], count) for side in sides]
    below, above = (row["holds"] for row in rows)
    verdict = "confirmed" if above and below is False else "not confirmed" if above is False else "not settled"
    text = ", ".join(
        f"{row['lead']:+.2f} [{row['lead_low']:.2f}, {row['lead_high']:.2f}] at T = {row['T']}" for row in rows
    )
    measured: dict[str, Any] = {"condition": str(sampled), "seeds": list(seeds)}
    return Answer(headline=f"{verdict}: lead {text}", rows=rows, measured=measured)


def _row(side: LongCondition, cells: Mapping[str, Series], count: int) -> dict[str, Any]:
    """One side of the border: the lead, whether it is worth a change of recipe, and what both came to."""
    ahead = lead(*(cells[name] for name in RECIPES))
    holds = True if ahead.low > WORTH else False if ahead.high < WORTH else None
    row: dict[str, Any] = {"T": side.horizon, "holds": holds}
    row |= {"lead": ahead.value, "lead_low": ahead.low, "lead_high": ahead.high}
    row["seeds_to_settle"] = seeds_to_settle(ahead, count, WORTH) if holds is None else None
    for name in RECIPES:
        row[f"j_pi {name}"] = interquartile_mean(final(cells[name])).value
        row[f"collapsed {name}"] = share(collapsed(course(cells[name]["exact/j_pi"], side.value))).value
    return row


STUDY = Study(
    id="samples",
    question="Does the border of importance sampling along the length hold for updates over samples?",
    source="regimes; arXiv 2512.01374 sec. 4",
    rule=f"{SEEDS} seeds, {SAMPLED.updates:,} updates of 64 responses, learning rate {SAMPLED.lr:g}, {SIDES[0]} and "
    f"{SIDES[1]} tokens: confirmed if the interval of the lead of MiniRL lies above {WORTH} on the far side and below "
    f"it on the near side; not confirmed if it lies below {WORTH} on the far side; else not settled",
    answer=_answer,
)
