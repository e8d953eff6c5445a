"""Why training declines: each published cause taken out of a run that declines, and all else kept.

A run's loss is the final J of π of the sound reference minus its own; the reference is `minirl` on exact expected
updates, one a rollout, at the base learning rate, in the same world from the same start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from firstorder.sim.trials.collapse import collapsed
from firstorder.sim.trials.compare import LAST, final, interquartile_mean
from firstorder.sim.trials.long import LongCondition, course
from firstorder.sim.trials.runs import Series, gathered
from firstorder.sim.trials.statistics import seeds_to_settle, share

from . import verdicts
from .removals import DECLINES, FIRST_LOOK, Removal, flipless, reference
from .study import Answer, Plan, Study

CLAIMS: Mapping[str, str] = {
    "bias": "token weights that are biased (arXiv 2602.01103)",
    "variance": "variance of the update (arXiv 2602.17616, 2602.07078)",
    "step": "the size of a step (arXiv 2602.01826)",
    "readings": "errors of the log-probs that are read (KAT-Coder, December 2025)",
    "tail": "the tail of the vocabulary (arXiv 2512.23087)",
    "boundaries": "routes that flip at boundaries (arXiv 2605.02124)",
    "anchor": "a trust region around the wrong policy (arXiv 2602.04879)",
    "clip": "the clip itself",
    "staleness": "the lag of the rollout (arXiv 2602.17616)",
    "contexts": "contexts that failing responses alone visit",
}
DEPLOYED = "improving π does not improve μ (arXiv 2606.29526)"

Run = tuple[LongCondition, str]
Found = Mapping[LongCondition, Mapping[str, Series]]


def _answer(plan: Plan) -> Answer:
    """Train every run once, and judge every removal."""
    declines = FIRST_LOOK if plan.quick else DECLINES
    made = {name: {removal: _without(removal, plan) for removal in each.removals} for name, each in declines.items()}
    wanted: set[Run] = set()
    for name, each in declines.items():
        for run in ((each.condition, each.recipe), *made[name].values()):
            wanted |= {run, (reference(run[0]), "minirl")}
    found = gathered({run: run[0].cell(run[1], plan.seeds) for run in sorted(wanted, key=str)}, plan.folder, logs=False)
    rows, deployed, conditions = [], [], {}
    for name, each in declines.items():
        run = each.condition, each.recipe
        rows += [row(name, None, run, run, found)]
        rows += [row(name, removal, run, other, found) for removal, other in made[name].items()]
        deployed += [_deployed(name, each.recipe, found[each.condition][each.recipe])]
        deployed += [_deployed(f"{name}: reference", "minirl", found[reference(each.condition)]["minirl"])]
        conditions[name] = {"itself": str(each.condition)} | {r.how: str(other[0]) for r, other in made[name].items()}
    answers = claims(rows)
    measured = {"claims": answers, "deployed": {"claim": DEPLOYED, "runs": deployed}, "conditions": conditions}
    return Answer(headline=headline(answers), rows=rows, measured=measured)


def headline(answers: list[dict[str, Any]]) -> str:
    """The claims by their answers, in a sentence."""
    by: dict[str, list[str]] = {}
    for each in answers:
        by.setdefault("holds in some runs" if ":" in each["answer"] else each["answer"], []).append(each["suspect"])
    return "; ".join(f"{answer}: {', '.join(suspects)}" for answer, suspects in by.items())


def _without(removal: Removal, plan: Plan) -> Run:
    condition = flipless(removal.condition, plan.seeds) if removal.flipless else removal.condition
    return condition, removal.recipe


def row(name: str, removal: Removal | None, run: Run, other: Run, found: Found) -> dict[str, Any]:
    """A removal in a line; without one the run itself, of whose loss no share is gone."""
    sound = final(found[reference(run[0])]["minirl"])
    series, seeds = found[other[0]][other[1]], len(sound)
    lost = sound - final(found[run[0]][run[1]])
    left = final(found[reference(other[0])]["minirl"]) - final(series)
    loss, ends = verdicts.loss(sound, final(found[run[0]][run[1]])), interquartile_mean(final(series))
    gone = verdicts.share_removed(lost, left)
    itself = other == (reference(run[0]), "minirl")  # nothing is left of a loss against itself: no evidence
    judged = None if removal is None or itself else verdicts.verdict(loss, gone)
    unsettled = judged == "open" and loss.low > verdicts.WORTH
    return {
        "condition": name,
        "suspect": None if removal is None else removal.suspect,
        "removal": None if removal is None else removal.how,
        "recipe": other[1],
        "j_pi": ends.value,
        "j_pi_low": ends.low,
        "j_pi_high": ends.high,
        "j_mu": interquartile_mean(series["exact/j_mu"][:, -LAST:].mean(-1)).value,
        "collapsed": share(collapsed(course(series["exact/j_pi"], other[0].value))).value,
        "lost": loss.value if removal is None else verdicts.loss(left, torch.zeros_like(left)).value,
        "share": None if removal is None else gone.value,
        "share_low": None if removal is None else gone.low,
        "share_high": None if removal is None else gone.high,
        "verdict": judged,
        "seeds_needed": seeds_to_settle(gone, seeds, verdicts.LEAST) if unsettled else None,
    }


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every claim with the answer that its removals give."""
    answers = []
    for suspect, claim in CLAIMS.items():
        mine = [row for row in rows if row["suspect"] == suspect and row["verdict"] is not None]
        states = [(f"{row['condition']} ({row['removal']})", row["verdict"]) for row in mine]
        if mine:
            answers.append({"suspect": suspect, "claim": claim, "answer": verdicts.over(states), "removals": len(mine)})
    return answers


def _deployed(name: str, recipe: str, series: Series) -> dict[str, Any]:
    """Whether μ gets worse where π gets better, and how far μ is behind at the end."""
    fails = verdicts.rises_that_fail(series["exact/j_pi"], series["exact/j_mu"])
    behind = interquartile_mean((series["exact/j_pi"] - series["exact/j_mu"])[:, -LAST:].mean(-1))
    found: dict[str, Any] = {
        "condition": name,
        "recipe": recipe,
        "behind": behind.json(),
        "seeds_that_rise": len(fails),
    }
    if len(fails) < 2:
        return found | {"holds": None}
    share = interquartile_mean(fails)
    settled = share.low > verdicts.LEAST or share.high < verdicts.LEAST
    return found | share.json() | {"holds": share.low > verdicts.LEAST if settled else None}


STUDY = Study(
    id="causes",
    question="Which of the published causes of a collapse are causes of it here?",
    source="; ".join(CLAIMS.values()),
    rule="of a run's loss against minirl on exact updates in the same world, 8 seeds paired, the share that goes when "
    "one suspect is taken out and all else is kept: a cause where it is at least half and its interval lies above a "
    "quarter; a cause in part where less than half, above a quarter; none where the interval lies below a quarter; "
    "else open. A run counts if the interval of its loss lies above 0.1, but not as the reference itself. "
    f"{DEPLOYED}: where J(μ) falls in more than a quarter of the steps between evaluations in which J(π) rises by 0.01",
    answer=_answer,
)
