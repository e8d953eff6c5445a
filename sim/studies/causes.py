"""Why training declines: each published cause taken out of a run that declines, and all else kept.

A run's loss is the final J of π of the sound reference minus its own; the reference is `minirl` on exact expected
updates, one a rollout, at the base learning rate, in the same world from the same start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Numerics, Sim
from firstorder.sim.exact.edges import kl
from firstorder.sim.exact.scene import build, engines, grow
from firstorder.sim.trials.collapse import collapsed
from firstorder.sim.trials.compare import LAST, final, interquartile_mean
from firstorder.sim.trials.long import BASE, LongCondition, course
from firstorder.sim.trials.runs import Series, gathered
from firstorder.sim.trials.statistics import share

from . import verdicts
from .study import Answer, Plan, Study

CUTS = 24  # of the bisection of a noise, whose range of 1e-4 to 10 is then known to a millionth
OF_METHOD = ("reading_noise", "draws", "update_contexts", "min_p")
"""Keys of `[sim]` that are a part of a method or of its data, and not of the world that it is compared in."""

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


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A suspect taken out of a run.

    Args:
        suspect: of `CLAIMS`.
        how: what was changed.
        condition: the run without it.
        recipe: the same.
        flipless: whether its engines differ by noise on the head alone, as large a KL apart as before.
    """

    suspect: str
    how: str
    condition: LongCondition
    recipe: str
    flipless: bool = False


@dataclass(frozen=True, kw_only=True)
class Decline:
    """A run that declines, and what can be taken out of it."""

    condition: LongCondition
    recipe: str
    removals: tuple[Removal, ...]


def keyed(condition: LongCondition, **keys: Any) -> LongCondition:
    """The condition with other keys of `[sim]`."""
    return condition.but(sim=tuple((dict(condition.sim) | keys).items()))


def reference(condition: LongCondition) -> LongCondition:
    """Where the sound reference is trained: the same world, start and number of updates."""
    world = tuple((key, value) for key, value in condition.sim if key not in OF_METHOD)
    return condition.but(sampled=False, minibatches=1, lr=BASE.lr, sim=world, recipe=())


def scaled(condition: LongCondition) -> LongCondition:
    """The condition with every step scaled by the effective sample size."""
    return condition.but(recipe=(*condition.recipe, ("optimizer.step_scale", "ess")))


def _half(condition: LongCondition, recipe: str) -> Removal:
    return Removal(suspect="step", how="half the step", condition=condition.but(lr=condition.lr / 2), recipe=recipe)


def _on_chain(condition: LongCondition, recipe: str) -> Removal:
    left = keyed(condition, update_contexts="on_chain")
    return Removal(suspect="contexts", how="not learnt from", condition=left, recipe=recipe)


def _recipe(suspect: str, how: str, condition: LongCondition, recipe: str) -> Removal:
    return Removal(suspect=suspect, how=how, condition=condition, recipe=recipe)


def _biased(condition: LongCondition, recipe: str = "minirl-no-is") -> Decline:
    removals = (
        _recipe("bias", "token ratio", condition, "minirl"),
        _recipe("bias", "sequence ratio", condition, "reinforce-is"),
        _half(condition, recipe),
        _recipe("variance", "step by ESS", scaled(condition), recipe),
        _recipe("tail", "pruned at 1e-4", keyed(condition, min_p=1e-4), recipe),
        _recipe("boundaries", "R3", condition, "minirl-r3-no-is"),
        Removal(suspect="boundaries", how="no flips", condition=condition, recipe=recipe, flipless=True),
        _on_chain(condition, recipe),
        _recipe("contexts", "share no feature", keyed(condition, shared=0.0), recipe),
        _recipe("contexts", "recovery", keyed(condition, recovery=1), recipe),
    )
    return Decline(condition=condition, recipe=recipe, removals=removals)


def _sampled(condition: LongCondition, recipe: str, *more: Removal) -> Decline:
    removals = (
        *more,
        _recipe("variance", "exact update", condition.but(sampled=False), recipe),
        _recipe("variance", "step by ESS", scaled(condition), recipe),
        _half(condition, recipe),
        _recipe("boundaries", "R3", condition, recipe.replace("minirl", "minirl-r3")),
    )
    return Decline(condition=condition, recipe=recipe, removals=removals)


def _long(condition: LongCondition, recipe: str = "minirl-no-is") -> Decline:
    removals = (
        _recipe("bias", "token ratio", condition, "minirl"),
        _half(condition, recipe),
        _recipe("boundaries", "R3", condition, "minirl-r3-no-is"),
        _on_chain(condition, recipe),
    )
    return Decline(condition=condition, recipe=recipe, removals=removals)


def _large(condition: LongCondition, recipe: str = "minirl") -> Decline:
    removals = (
        _recipe("bias", "sequence ratio", condition, "reinforce-is"),
        _half(condition, recipe),
        _recipe("boundaries", "R3", condition, "minirl-r3"),
        _recipe("anchor", "clip around μ", condition, "dppo-tv"),
        _on_chain(condition, recipe),
    )
    return Decline(condition=condition, recipe=recipe, removals=removals)


def _stale(condition: LongCondition, recipe: str = "minirl") -> Decline:
    removals = (
        _recipe("staleness", "N = 1", condition.but(minibatches=1), recipe),
        _half(condition, recipe),
        _recipe("clip", "none", condition, "minirl-no-clip"),
        _recipe("anchor", "clip around μ", condition, "dppo-tv"),
        _recipe("boundaries", "R3", condition, "minirl-r3"),
        _on_chain(condition, recipe),
    )
    return Decline(condition=condition, recipe=recipe, removals=removals)


def _misread(condition: LongCondition, recipe: str = "minirl-tis") -> Decline:
    error = dict(condition.sim)["reading_noise"]
    removals = (
        _recipe("readings", "the mean of 8", keyed(condition, reading_noise=error / math.sqrt(8)), recipe),
        _recipe("bias", "no truncation", condition, "minirl"),
        _half(condition, recipe),
        _on_chain(condition, recipe),
    )
    return Decline(condition=condition, recipe=recipe, removals=removals)


SHORT = BASE.but(problems=8, updates=64)
DECLINES: Mapping[str, Decline] = {
    "no IS, exact": _biased(SHORT),
    "no IS, sampled": _sampled(
        SHORT.but(sampled=True),
        "minirl-no-is",
        _recipe("bias", "token ratio", SHORT.but(sampled=True), "minirl"),
    ),
    "IS, sampled": _sampled(SHORT.but(sampled=True), "minirl"),
    "no IS, close engines": _long(SHORT.but(horizon=2048, noise=0.02)),
    "large step": _large(SHORT.but(lr=0.008)),
    "stale": _stale(SHORT.but(minibatches=8, lr=0.02, updates=96)),
    "misread": _misread(keyed(SHORT, reading_noise=1.0, draws=8)),
}
FIRST_LOOK: Mapping[str, Decline] = {"no IS, exact": _long(SHORT.but(updates=24))}


def flipless(condition: LongCondition, seeds: range) -> LongCondition:
    """The condition with noise on the head alone, as large a mean KL(μ ‖ π) a token at the start, and no flip.

    The KL grows with the noise, which is bisected on a logarithmic scale.
    """
    sim, which = condition.world(seeds), torch.arange(seeds.start, seeds.stop)
    wanted = _divergence(sim, which)
    low, high = math.log(1e-4), math.log(10.0)
    for _ in range(CUTS):
        middle = (low + high) / 2
        far = _divergence(sim.model_copy(update={"numerics": _on_head(math.exp(middle))}), which) > wanted
        low, high = (low, middle) if far else (middle, high)
    return keyed(condition, numerics=_on_head(float(f"{math.exp(low):.4g}")))


def _on_head(scale: float) -> Numerics:
    return Numerics(kind="noise", router_scale=0.0, expert_scale=0.0, head_scale=scale)


def _divergence(sim: Sim, seeds: Tensor) -> float:
    """KL(μ ‖ π) a response token at the start, the mean over policies, nats."""
    with torch.no_grad():
        scene = build(sim, grow(sim), engines(sim, seeds), starting_weights(sim, seeds), modes=["disabled"])
    divergence = kl(scene.mu_old.logp, scene.old["disabled"].logp)
    return float((scene.share * divergence).sum(-1).mean())


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
    found = gathered({run: run[0].cell(run[1], plan.seeds) for run in sorted(wanted, key=str)}, plan.folder)
    rows, deployed = [], []
    for name, each in declines.items():
        run = each.condition, each.recipe
        rows += [row(name, None, run, run, found)]
        rows += [row(name, removal, run, other, found) for removal, other in made[name].items()]
        deployed += [_deployed(name, each.recipe, found[each.condition][each.recipe])]
        deployed += [_deployed(f"{name}: reference", "minirl", found[reference(each.condition)]["minirl"])]
    answers = claims(rows)
    holds = [claim["suspect"] for claim in answers if claim["answer"].startswith("holds")]
    mixed = [claim["suspect"] for claim in answers if ":" in claim["answer"]]
    headline = (
        f"a cause wherever it was settled: {', '.join(holds) or 'none'}; in some runs: {', '.join(mixed) or 'none'}"
    )
    return Answer(
        headline=headline, rows=rows, measured={"claims": answers, "deployed": {"claim": DEPLOYED, "runs": deployed}}
    )


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
    judged = None if removal is None else verdicts.verdict(loss, gone)
    return {
        "condition": name,
        "suspect": None if removal is None else removal.suspect,
        "removal": None if removal is None else removal.how,
        "recipe": other[1],
        "j_pi": ends.value,
        "j_pi_low": ends.low,
        "j_pi_high": ends.high,
        "j_mu": interquartile_mean(series["exact/j_mu"][:, -LAST:].mean(-1)).value,
        "collapsed": share(collapsed(course(series, other[0]))).value,
        "lost": loss.value if removal is None else verdicts.loss(left, torch.zeros_like(left)).value,
        "share": None if removal is None else gone.value,
        "share_low": None if removal is None else gone.low,
        "share_high": None if removal is None else gone.high,
        "verdict": judged,
        "seeds_needed": verdicts.seeds_needed(gone, seeds) if judged == "open" and loss.low > verdicts.WORTH else None,
    }


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every claim with the answer that its removals give."""
    answers = []
    for suspect, claim in CLAIMS.items():
        mine = [row for row in rows if row["suspect"] == suspect]
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
    rule="of a run's loss against minirl on exact updates in the same world, 8 seeds paired, the share that goes when one "
    "suspect is taken out and all else is kept: a cause where it is at least half and its interval lies above a quarter; "
    "a cause in part where less than half, above a quarter; none where the interval lies below a quarter; else open. A "
    "run counts if the interval of its loss lies above 0.1. "
    f"{DEPLOYED}: where J(μ) falls in more than a quarter of the steps between evaluations in which J(π) rises by 0.01",
    answer=_answer,
)
