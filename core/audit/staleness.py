"""Weights of different versions, by the versions that a dump records, and ratios that are of other log-probs.

Shapes: B responses, L positions, G lags.

A token is sampled by weights some versions behind its step. Where engines differ by rounding alone, the lag makes no
difference to |D|; an update moves every log-prob, in both directions and on tokens of any probability. Rounding moves
a token of probability p in proportion to 1 - p, so that |D| is compared per unit of that.
"""

from __future__ import annotations

import torch

from firstorder.core.formats.chunk import Chunk

from .clusters import LIMIT, compared, gather, log_ratio, sized
from .finding import Detector, Finding, Known, Sums

LAGS = 9  # a version is told apart up to so many steps behind; those further behind count as that far
MORE = 1.5  # times as large as at the newest version: |D| varies that much with position alone
SURE = 5.0  # standard deviations, clustered by response: 3e-7 of a normal distribution, one-sided
LEAST = 100  # tokens of a version
RELATIVE = 1e-3  # of a ratio that a dump holds: bf16 keeps 2e-3, float32 1e-7
DIFFERS = 0.01  # share of tokens whose ratio is another: fewer are a matter of rounding or of masks


def _lag_terms(chunk: Chunk) -> Sums:
    assert chunk.version is not None
    known = chunk.usable & (chunk.version >= 0)
    size, scale = sized(chunk)
    lag = (chunk.steps[:, None] - chunk.version).clamp(0, LAGS - 1)
    of_lag = [known & (lag == each) for each in range(LAGS)]
    columns = [torch.where(kept, x, 0.0) for x in (size, scale) for kept in of_lag]
    return gather(known, columns) | {"tokens": torch.stack([kept.sum() for kept in of_lag])}


def _stale(sums: Sums, known: Known) -> Finding | None:
    there = (sums["tokens"] >= LEAST).nonzero()[:, 0].tolist()
    if len(there) < 2:
        return None
    newest, older = there[0], there[1:]
    ratio, sigmas = compared(sums, (older, [newest]), MORE)
    if ratio < MORE or sigmas < SURE:
        return None
    return Finding(
        fault="stale weights",
        evidence=f"|D| of tokens that were sampled {older[0] - newest} or more versions before the newest is "
        f"{ratio:.1f} times that of the newest (per 1 - p), {sigmas:.0f} standard deviations above {MORE:g} times.",
        questions=(
            "how many updates may a rollout be behind the trainer, and is it corrected for?",
            "are the log-probs of the trainer's old policy those of the version that sampled?",
        ),
    )


STALE = Detector(
    fault="stale weights",
    stage=5,
    needs=("logp_mu", "logp_old", "version"),
    measure=_lag_terms,
    judge=_stale,
    rule=f"the sum of |D| over that of 1 - p, at tokens of older versions, is {MORE:g} times that at the newest by "
    f"{SURE:g} standard deviations clustered by response; versions of {LEAST} tokens at least",
)

COLUMNS = {
    "log_importance_ratio": lambda d: d,
    "importance_ratio": torch.exp,
    "mismatch_kl": lambda d: d.expm1() - d,
}
"""Columns that are made of D, by the names that dumps have for them: prime-rl's `token_exports`, schema version 1."""


def _ratio_terms(chunk: Chunk) -> Sums:
    d, sums = log_ratio(chunk).clamp(-LIMIT, LIMIT), {}
    for name, formula in COLUMNS.items():
        column = chunk.column(name)
        if column is None:
            continue
        due = formula(d)
        known = chunk.usable & column.isfinite()
        scale = RELATIVE * (1 + due.abs())
        sums |= {
            f"{name}_other": (known & ((column - due).abs() > scale)).sum(),
            f"{name}_known": known.sum(),
            f"{name}_gap": torch.where(known, (column - due).abs(), 0.0).sum(),
        }
    return sums


def _other_ratio(sums: Sums, known: Known) -> Finding | None:
    for name in COLUMNS:
        of = int(sums.get(f"{name}_known", torch.tensor(0)))
        other = int(sums[f"{name}_other"]) if of else 0
        if of and other > DIFFERS * of:
            return Finding(
                fault="other ratio",
                evidence=f"`{name}` is not made of the dump's trainer and rollout log-probs at {other} of {of} tokens; "
                f"it differs by {float(sums[f'{name}_gap']) / of:.2g} on average.",
                questions=(
                    "is the ratio made of the log-probs before the update, or of the current ones?",
                    "are its log-probs recomputed, at another temperature, or taken from the rollout engine?",
                ),
            )
    return None


OTHER_RATIO = Detector(
    fault="other ratio",
    stage=5,
    needs=("logp_mu", "logp_old"),
    measure=_ratio_terms,
    judge=_other_ratio,
    rule=f"a column of {', '.join(COLUMNS)} differs from the formula by more than {RELATIVE:g} relative at more than "
    f"{DIFFERS:.0%} of the tokens",
)
