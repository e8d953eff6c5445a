"""How well a logged quantity foresees a collapse: thresholds fitted on some runs, judged on the others.

A run reads s_u at update u, signed so that more is worse and in logarithms where its scale is. Its threshold is what
5 % of the stable runs go beyond at some update:

    s* = constant + Σ_k coefficient_k · log feature_k,   features T, N and the entropy to begin with

The coefficients are least squares of the stable runs' maxima, and the constant is their residual of the rank
⌈(1 - 0.05) (n + 1)⌉. e_u = s_u - s*, with s* fitted on other runs, is all that is judged.

Shapes: R runs, U updates, F features, B bootstrap draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core.runs.alarm_table import HeldOut, Interval, Quartiles, Threshold
from firstorder.sim.trials.statistics import LEVEL, RESAMPLES, Estimate, share

FALSE_ALARMS = 0.05
WEAK = 0.1  # of the largest singular value: directions of the features that runs vary less in have no coefficient
AHEAD = 4  # updates before a collapse at which readings are compared: the evaluation before it


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What was seen of some runs.

    Args:
        scores: `[R, U]`, s after so many updates, the first of them 1; NaN where there is no reading.
        onset: int64 `[R]`, updates done at the evaluation that is the first of the collapse; -1 for a stable run.
        features: `[R, F]`, logarithms of T, N and the entropy to begin with.
        seeds, conditions: int64 `[R]`, which policy and which condition a run is of.
    """

    scores: Tensor
    onset: Tensor
    features: Tensor
    seeds: Tensor
    conditions: Tensor

    def of(self, which: Tensor) -> Observed:
        """Some of the runs."""
        return Observed(
            scores=self.scores[which],
            onset=self.onset[which],
            features=self.features[which],
            seeds=self.seeds[which],
            conditions=self.conditions[which],
        )

    @property
    def stable(self) -> Tensor:
        """Which runs do not collapse."""
        return self.onset < 0

    @property
    def clusters(self) -> Tensor:
        """Runs of one seed in one condition are a cluster: they share policy and engine."""
        pairs = list(zip(self.conditions.tolist(), self.seeds.tolist(), strict=True))
        number = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
        return torch.tensor([number[pair] for pair in pairs])


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A threshold on signed scores: constant, and a coefficient `[F]` of each feature."""

    constant: float
    coefficients: Tensor

    def at(self, features: Tensor) -> Tensor:
        """s* `[R]`."""
        return self.constant + features @ self.coefficients

    def threshold(self, side: str) -> Threshold:
        """As it stands in a table, where the low side has its sign again."""
        sign = 1.0 if side == "high" else -1.0
        length, minibatches, entropy = (sign * self.coefficients).tolist()
        return Threshold(constant=sign * self.constant, length=length, minibatches=minibatches, entropy=entropy)


def fit(runs: Observed) -> Fitted | None:
    """The threshold from the stable ones of these runs, their largest residual where they are fewer than 19; None where
    none has a reading, or where no threshold is worse than 95 % of them."""
    stable = runs.of(runs.stable)
    worst = stable.scores.nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(-1)
    read = ~stable.scores.isnan().all(-1)
    worst, features = worst[read], stable.features[read]
    if not len(worst):
        return None
    rank = min(len(worst), math.ceil((1 - FALSE_ALARMS) * (len(worst) + 1)))
    finite = worst.isfinite()
    coefficients = _least_squares(features[finite], worst[finite])
    constant = float((worst - features @ coefficients).sort().values[rank - 1])
    return Fitted(constant=constant, coefficients=coefficients) if math.isfinite(constant) else None


def _least_squares(features: Tensor, values: Tensor) -> Tensor:
    """Coefficients of the features beside a constant, 0 along directions that hardly vary."""
    if len(values) < 2:
        return torch.zeros(features.shape[-1], dtype=torch.float64)
    centred = features - features.mean(0)
    scale = torch.where(centred.std(0) > 1e-9, centred.std(0), torch.inf)
    slopes: Tensor = torch.linalg.pinv(centred / scale, rtol=WEAK) @ (values - values.mean())
    return slopes / scale


def excess(runs: Observed, folds: Tensor) -> Tensor | None:
    """e `[R, U]` of every run, from the threshold that the runs of other folds make; None where one cannot be fitted.

    Args:
        runs: all runs.
        folds: int64 `[R]`.
    """
    out = torch.full_like(runs.scores, torch.nan)
    for fold in set(folds.tolist()):
        mine = folds == fold
        fitted = fit(runs.of(~mine))
        if fitted is None:
            return None
        out[mine] = runs.scores[mine] - fitted.at(runs.features[mine])[:, None]
    return out


def foreseen(runs: Observed, e: Tensor) -> HeldOut | None:
    """What the excess says of the collapses: None where no collapse or no stable run can be compared."""
    warned = _first(e > 0)
    hit = ~runs.stable & (warned > 0) & (warned < runs.onset)
    if not hit.numel() or runs.stable.all() or not runs.stable.any():
        return None
    auc = _auc(runs, e)
    if auc is None:
        return None
    leads = (runs.onset - warned)[hit].double()
    quartiles = (
        leads.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist() if len(leads) else [0.0] * 3
    )
    draws = _draws(runs.clusters)
    told = hit | (runs.stable & (warned > 0))
    return HeldOut(
        auc=auc,
        within=_auc(runs, e, runs.conditions),
        hits=_rate(hit, ~runs.stable, draws),
        false_alarms=_rate(warned > 0, runs.stable, draws),
        precision=_rate(hit, told, draws),
        lead=Quartiles(low=quartiles[0], median=quartiles[1], high=quartiles[2]),
        collapsed=int((~runs.stable).sum()),
        stable=int(runs.stable.sum()),
    )


def _first(beyond: Tensor) -> Tensor:
    """Updates done at the first `True` of `[R, U]`, 0 where there is none."""
    return torch.where(beyond.any(-1), beyond.int().argmax(-1) + 1, 0)


def _auc(runs: Observed, e: Tensor, strata: Tensor | None = None) -> Interval | None:
    """P(a run reads worse `AHEAD` updates before its collapse than a stable one at the same update), ties as half.

    Args:
        runs: all runs.
        e: `[R, U]`.
        strata: `[R]`, only pairs within one of which count.
    """
    bad, good = (~runs.stable).nonzero()[:, 0], runs.stable.nonzero()[:, 0]
    at = runs.onset[bad] - AHEAD - 1
    place = at.clamp(min=0)
    mine = torch.where(at >= 0, e[bad, place], torch.nan)[:, None]
    others = e[good][:, place].T
    pairs = ~(mine.isnan() | others.isnan())
    if strata is not None:
        pairs &= strata[bad][:, None] == strata[good]
    if not pairs.any():
        return None
    worse = torch.where(pairs, (mine > others).double() + 0.5 * (mine == others).double(), 0.0)
    weights = _draws(runs.clusters)
    drawn = ((weights[:, bad] @ worse) * weights[:, good]).sum(-1)
    of = ((weights[:, bad] @ pairs.double()) * weights[:, good]).sum(-1)
    low, high = _percentiles(drawn / of)
    return Interval(value=float(worse.sum() / pairs.sum()), low=low, high=high)


def _rate(hits: Tensor, among: Tensor, draws: Tensor) -> Interval:
    """A share with the wider of two intervals: over clusters, and exact binomial, which knows shares of 0 and 1."""
    if not among.any():
        return Interval(value=0.0, low=0.0, high=1.0)
    exact: Estimate = share(hits[among])
    low, high = _percentiles((draws @ (hits & among).double()) / (draws @ among.double()))
    return Interval(value=exact.value, low=min(exact.low, low), high=max(exact.high, high))


def _draws(clusters: Tensor) -> Tensor:
    """How often each run is drawn when whole clusters are, with a fixed seed; `[B, R]`."""
    n = int(clusters.max()) + 1
    picks = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(RESAMPLES, n, dtype=torch.float64).scatter_add_(1, picks, torch.ones_like(picks).double())
    return counts[:, clusters]


def _percentiles(drawn: Tensor) -> tuple[float, float]:
    """The 95 % percentile interval of draws, without those that have no value."""
    tail = (1 - LEVEL) / 2
    known = drawn[drawn.isfinite()]
    low, high = known.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
