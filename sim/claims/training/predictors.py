"""Empirical: what foretells a collapse, the coherence of the bias or its size, the KL, the entropy, the flips.

Shapes: S seeds, K exact evaluations, R runs.

Each predictor is the mean over the first evaluations of a run; a run that has collapsed by then foretells nothing and
is left out. The area under its ROC curve is P(a run that collapses has the larger value than one that does not). Which
side counts as dangerous is chosen on the even seeds; areas and intervals are those of the odd seeds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firstorder.sim.claims.claim import Claim, Outcome
from firstorder.sim.trials.budget import Budget, Verdict
from firstorder.sim.trials.collapse import onset
from firstorder.sim.trials.runs import Series, runs
from firstorder.sim.trials.statistics import Estimate, bootstrap

EARLY = 3  # evaluations that a predictor may see
COHERENCE = "exact/bias_coherence"
RIVALS = ("exact/gradient_error_natural", "kl", "update/entropy", "route/flip_rate")
PREDICTORS = (COHERENCE, "exact/bias_cosine", "exact/bias_entropy", *RIVALS)
Array = NDArray[np.float64]


def early(series: Series, name: str) -> Tensor:
    """Mean of a quantity over the first evaluations, `[S]`."""
    return series[name][:, :EARLY].mean(-1)


def area(values: Array, labels: Array) -> Array:
    """Area under the ROC curve of `[..., R]` values for labels 0 and 1, ties counting half; NaN for one class only."""
    from scipy import stats  # here, since it takes as long to import as torch

    ranks = stats.rankdata(values, axis=-1)
    ones = labels.sum(-1)
    zeros = labels.shape[-1] - ones
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(((ranks * labels).sum(-1) - ones * (ones + 1) / 2) / (ones * zeros))


def _foretells(budget: Budget) -> Outcome:
    cells = [series for found in runs(budget).series.values() for series in found.values()]
    odd = torch.arange(budget.policies) % 2 == 1
    at = torch.stack([onset(series["exact/j_pi"]) for series in cells])
    standing = (at < 0) | (at >= EARLY)
    chosen, reported = standing & ~odd, standing & odd
    labels = (at >= 0).double()
    values = {name: torch.stack([early(series, name) for series in cells]) for name in PREDICTORS}
    known, held_out = labels[chosen].numpy(), labels[reported].numpy()
    measured: dict[str, Any] = {"runs": int(standing.sum()), "collapsed": int(labels[standing].sum())}
    oriented: dict[str, Array] = {}
    areas: dict[str, Estimate] = {}
    for name, value in values.items():
        sign = 1.0 if area(value[chosen].numpy(), known) >= 0.5 else -1.0
        oriented[name] = sign * value[reported].numpy()
        areas[name] = bootstrap([oriented[name], held_out], area)
        measured[name] = {"dangerous": "high" if sign > 0 else "low", "area": areas[name].json()}
    best = max(RIVALS, key=lambda name: areas[name].value)

    def ahead(mine: Array, theirs: Array, label: Array) -> Array:
        return area(mine, label) - area(theirs, label)

    margin = bootstrap([oriented[COHERENCE], oriented[best], held_out], ahead)
    measured |= {"best_rival": best, "margin": margin.json()}
    verdict: Verdict = "inconclusive"
    if margin.low > 0:
        verdict = "reproduced"
    elif margin.high < 0:
        verdict = "not reproduced"
    text = headline(measured, areas[COHERENCE], areas[best], best)
    return Outcome(verdict=verdict, headline=text, measured=measured)


def headline(measured: dict[str, Any], own: Estimate | float, other: Estimate | float, rival: str) -> str:
    """The two areas in a phrase, or why there are none."""
    counts = f"{measured['collapsed']} of {measured['runs']} collapsed"
    values = [each.value if isinstance(each, Estimate) else each for each in (own, other)]
    if any(map(math.isnan, values)):
        return f"no area: held-out runs must both collapse and stand; {counts}"
    return f"area {own} against {other} of {rival}, {counts}"


CLAIMS = (
    Claim(
        id="training-bias-coherence",
        statement="How coherent a recipe's bias is from update to update foretells a collapse better than its size, "
        "the KL, the entropy or the flip rate.",
        source="a conjecture of this project",
        kind="empirical",
        rule="reproduced if, on held-out runs, the area under the ROC curve of the coherence minus that of the best of "
        "the others has an interval above 0; not reproduced if below",
        check=_foretells,
    ),
)
