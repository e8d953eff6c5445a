"""Columns that no log-prob can be: null, above 0, probabilities, rounded; and steps that do not follow each other.

Shapes: B responses, L positions. μ is the rollout engine, π_old the trainer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.core.formats.chunk import Chunk

from .finding import EACH, Detector, Finding, Known, Sums, first

ROUNDING = 1e-5  # nats; what float32 can make of log p = 0 out of logits up to 80: 80 x 2^-23
COARSE_SHARE = 0.9  # of the values; by chance a float32 number is one of bfloat16 with probability 2^-16
FEWEST_COARSE = 10
DECIMALS = (2, 3, 4)  # digits after the point that logs keep
DECIMAL_ERROR = 2.0**-22  # relative: a decimal that went through float32
NAMES = {"rollout": "logp_mu", "trainer": "logp_old"}


def sampled(chunk: Chunk) -> Tensor:
    """The tokens of the mask but for position 0, which no token precedes, bool `[B, L]`."""
    seen = chunk.mask.clone()
    seen[:, 0] = False
    return seen


def log_probs(chunk: Chunk) -> dict[str, Tensor]:
    """The log-probs that a chunk has, `[B, L]` each, by the side that they are of."""
    return {side: x for side, name in NAMES.items() if (x := getattr(chunk, name)) is not None}


def null_sums(chunk: Chunk) -> Sums:
    """Tokens of the mask without a number: NaN, or infinite."""
    seen = sampled(chunk)
    bad = {side: seen & ~x.isfinite() for side, x in log_probs(chunk).items()}
    infinite = {f"{side} infinite": (seen & x.isinf()).sum() for side, x in log_probs(chunk).items()}
    hits = torch.stack([x.any(-1) for x in bad.values()]).any(0)
    return {"tokens": seen.sum(), EACH + "hits": hits} | {side: x.sum() for side, x in bad.items()} | infinite


def judge_null(sums: Sums, known: Known) -> Finding | None:
    """Any."""
    counts = {side: int(sums[side]) for side in NAMES if side in sums}
    if not any(counts.values()):
        return None
    told = ", ".join(f"{n} of {int(sums['tokens'])} of the {side}" for side, n in counts.items() if n)
    infinite = sum(int(sums[f"{side} infinite"]) for side in counts)
    return Finding(
        fault="null log-probs",
        evidence=f"log-probs on the mask that are no numbers: {told}; {infinite} of them infinite.",
        questions=(
            "does one engine give a sampled token no probability, because it cuts by top-k or top-p and the other not?",
            "does the loss leave these tokens out, or does it read them as 0?",
        ),
        place=first(sums[EACH + "hits"]),
    )


def sign_sums(chunk: Chunk) -> Sums:
    """How many log-probs are above 0, above 1 and below 0, on each side."""
    seen, sums = sampled(chunk), Sums()
    hits = torch.zeros(len(seen), dtype=torch.bool)
    for side, x in log_probs(chunk).items():
        above = seen & (x > ROUNDING)
        sums |= {f"{side} above": above.sum(), f"{side} above 1": (seen & (x > 1 + ROUNDING)).sum()}
        sums |= {f"{side} below": (seen & (x < 0)).sum(), f"{side} most": torch.where(above, x, 0.0).sum()}
        hits |= above.any(-1)
    return sums | {"tokens": seen.sum(), EACH + "hits": hits}


def judge_above(sums: Sums, known: Known) -> Finding | None:
    """Any, unless a whole column is of probabilities."""
    counts = {side: int(sums[f"{side} above"]) for side in NAMES if f"{side} above" in sums}
    told = [side for side, n in counts.items() if n and not _probabilities(sums, side)]
    if not told:
        return None
    side = told[0]
    flipped = " and none is below, as if the sign were left out" if not int(sums[f"{side} below"]) else ""
    mean = float(sums[f"{side} most"]) / counts[side]
    return Finding(
        fault="log-probs above 0",
        evidence=f"{counts[side]} of {int(sums['tokens'])} log-probs of the {side} are above {ROUNDING:g}, "
        f"{mean:.3g} on average{flipped}.",
        questions=(
            "does the column hold negative log-likelihoods or logits rather than log-probs?",
            "were they normalised in a lower precision than they were written in?",
        ),
        place=first(sums[EACH + "hits"]),
    )


def judge_probabilities(sums: Sums, known: Known) -> Finding | None:
    """All of a column in [0, 1]."""
    for side in NAMES:
        if f"{side} above" in sums and _probabilities(sums, side):
            n = int(sums[f"{side} above"])
            return Finding(
                fault="probabilities in place of log-probs",
                evidence=f"the {int(sums['tokens'])} numbers of the {side} lie in [0, 1], {n} of them above 0, "
                f"{float(sums[f'{side} most']) / n:.3g} on average.",
                questions=(
                    f"where are the log-probs of the {side} exponentiated before they are written?",
                    "does the loss read the same column?",
                ),
            )
    return None


def _probabilities(sums: Sums, side: str) -> bool:
    nothing = not int(sums[f"{side} below"]) and not int(sums[f"{side} above 1"])
    return nothing and int(sums[f"{side} above"]) > 0


def coarse_sums(chunk: Chunk) -> Sums:
    """How many log-probs other than 0 are numbers of bfloat16, of float16, or have few decimals, on each side."""
    seen, sums = sampled(chunk), Sums()
    for side, x in log_probs(chunk).items():
        values = x[seen & x.isfinite() & (x != 0)]
        sums[f"{side} values"] = torch.tensor(len(values))
        sums[f"{side} changes"] = (values[1:] != values[:-1]).sum()
        for name, kept in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
            sums[f"{side} {name}"] = (values.to(kept).double() == values).sum()
        for digits in DECIMALS:
            scaled = values * 10.0**digits
            near = (scaled - scaled.round()).abs() <= scaled.abs() * DECIMAL_ERROR
            sums[f"{side} {digits} decimals"] = (near & (scaled.abs() * DECIMAL_ERROR < 0.01)).sum()
    return sums


def judge_coarse(sums: Sums, known: Known) -> Finding | None:
    """Nearly all of a column."""
    for side in NAMES:
        n = int(sums.get(f"{side} values", torch.tensor(0)))
        kinds = ("bfloat16", "float16", *(f"{digits} decimals" for digits in DECIMALS))
        for kind in kinds if n >= FEWEST_COARSE else ():
            if (hits := int(sums[f"{side} {kind}"])) >= COARSE_SHARE * n and int(sums[f"{side} changes"]):
                return Finding(
                    fault="log-probs stored coarsely",
                    evidence=f"{hits} of the {n} log-probs of the {side} that are not 0 are numbers of {kind}; what "
                    "they lost by it is in every D.",
                    questions=(
                        f"where are the log-probs of the {side} cast before they are written?",
                        "does the loss read them as they were computed, or as they were written?",
                    ),
                )
    return None


def step_sums(chunk: Chunk) -> Sums:
    """The step of every response, in the order of reading."""
    return {EACH + "step": chunk.steps}


def judge_steps(sums: Sums, known: Known) -> Finding | None:
    """Any step that is smaller than the one before it."""
    steps = sums[EACH + "step"]
    back = (steps[1:] < steps[:-1]).nonzero().flatten()
    if not len(back):
        return None
    before = int(back[0])
    again = bool((steps[: before + 1] == steps[before + 1]).any())
    return Finding(
        fault="steps out of order",
        evidence=f"response {before + 2} is of step {int(steps[before + 1])}, after one of step {int(steps[before])}"
        f"{', and that step was read before' if again else ''}; it happens {len(back)} times.",
        questions=(
            "was the run resumed from an earlier step, so that the folder holds two histories?",
            "are the files of two runs in one folder?",
        ),
        place=before + 1,
    )


DETECTORS = (
    Detector(
        fault="null log-probs",
        stage=1,
        needs=("logp_mu",),
        measure=null_sums,
        judge=judge_null,
        rule="any token of the mask, position 0 apart, whose log-prob is null, NaN or infinite",
    ),
    Detector(
        fault="log-probs above 0",
        stage=1,
        needs=("logp_mu",),
        measure=sign_sums,
        judge=judge_above,
        rule=f"any log-prob above {ROUNDING:g}, what float32 makes of 0 out of logits up to 80, unless a whole column "
        "lies in [0, 1]",
    ),
    Detector(
        fault="probabilities in place of log-probs",
        stage=1,
        needs=("logp_mu",),
        measure=sign_sums,
        judge=judge_probabilities,
        rule="all numbers of a column lie in [0, 1] and some are not 0",
    ),
    Detector(
        fault="steps out of order",
        stage=1,
        needs=(),
        measure=step_sums,
        judge=judge_steps,
        rule="any response of an earlier step than the response before it",
    ),
    Detector(
        fault="log-probs stored coarsely",
        stage=3,
        needs=("logp_mu",),
        measure=coarse_sums,
        judge=judge_coarse,
        rule=f"at least {COARSE_SHARE:.0%} of {FEWEST_COARSE} or more log-probs that are not 0 are numbers of bfloat16 "
        "or float16, or have four decimals or fewer; by chance one in 2^16, 2^13, 10 is",
    ),
)
