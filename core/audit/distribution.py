"""Whether what was recorded is what was sampled: three identities of importance sampling, and a temperature.

Shapes: B responses, L positions.

With ρ = π/μ at a token that μ sampled, in any context, and H the entropy of π there,

    E_μ[ρ] = 1           where μ gives a chance to all that π does,
    E_μ[ρ (log π + H)] = 0

whatever the two engines are, how far apart, and how noisy. Each is a sum of martingale differences: given the tokens
before it, the mean of every term is 0. So the tokens of a response do not correlate, and the square root of the sum of
squares is the spread of the sum, in three responses as in three hundred.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from firstorder.core.formats.chunk import Chunk

from .clusters import LIMIT, log_ratio
from .finding import Detector, Finding, Known, Sums

SURE = 6.0  # standard deviations: 1e-9 of a normal distribution, kept for the tails that a sum of ratios has
HEAVY = 0.05  # share of a sum of squares in one token, above which that token decides and nothing is said
LEAST = 300  # tokens, below which a sum is not near normal
UNSEEN = 2.0  # times k3: E[ρ] that rare large ratios may hide; one of them adds as much to k3 as to the mean of ρ
FEW = 0.02  # share of tokens that must not make a deficit alone: there one engine hardly ever says what the other does
BELOW = -torch.logspace(1.5, -4, 56, dtype=torch.float64)  # nats, edges of D, lowest first
MASS = 1e-4  # that is left out, at least: what float32 makes of a log-prob of -10 is off by 5e-7
SLOPE = 1e-3  # of D in log p, at least: temperatures are set to three digits
FITS = 0.5  # share of the variance of D that a temperature must explain: more than all else together
NEAR = 0.05  # nats a token of k3, up to which engines without a temperature left no such line in simulation
AGREE = 2.0  # factor between the two estimates of a temperature, each to first order in it


def _moments(kept: Tensor, values: Tensor) -> Sums:
    """Sum, sum of squares and largest square of terms at `kept` tokens."""
    terms = torch.where(kept, values, 0.0)
    return {"n": kept.sum(), "sum": terms.sum(), "square": terms.square().sum(), "fourth": terms.pow(4).sum()}


def _sigmas(sums: Sums) -> float:
    """A sum of martingale differences in standard deviations; 0 where few tokens decide it."""
    n, square = int(sums["n"]), float(sums["square"])
    if n < LEAST or square <= 0 or float(sums["fourth"]) > HEAVY * square**2:
        return 0.0
    return float(sums["sum"]) / math.sqrt(square)


def _ratio_terms(chunk: Chunk) -> Sums:
    kept, d = chunk.usable, log_ratio(chunk)
    excess = d.clamp(max=LIMIT).expm1()
    bins, count = torch.bucketize(d[kept], BELOW), len(BELOW) + 1

    def by_bin(x: Tensor) -> Tensor:
        return torch.zeros(count, dtype=torch.float64).index_add_(0, bins, x[kept].double())

    return _moments(kept, excess) | {
        "k3": torch.where(kept, excess - d, 0.0).sum(),
        "bin_n": by_bin(torch.ones_like(d)),
        "bin_sum": by_bin(excess),
        "bin_square": by_bin(excess.square()),
    }


def _without_lowest(sums: Sums) -> float:
    """As `_sigmas`, of the sum without the few tokens whose D is lowest; engines that disagree on a few contexts alone
    are left without their deficit, and a filter, which leaves something out everywhere, is not."""
    n = sums["bin_n"]
    before = n.cumsum(0) - n
    left = 1 - ((FEW * n.sum() - before) / n.clamp(min=1)).clamp(0.0, 1.0)
    square = float((left * sums["bin_square"]).sum())
    return float((left * sums["bin_sum"]).sum()) / math.sqrt(square) if square > 0 else 0.0


def _truncation(sums: Sums, known: Known) -> Finding | None:
    sigmas, n = _sigmas(sums), max(1, int(sums["n"]))
    missing, k3 = -float(sums["sum"]) / n, float(sums["k3"]) / n
    if max(sigmas, _without_lowest(sums)) > -SURE or missing < max(MASS, UNSEEN * k3):
        return None
    return Finding(
        fault="truncation",
        evidence=f"the mean of exp(D) is {1 - missing:.4f}, {-sigmas:.0f} standard deviations below 1, its value at "
        "any noise where both engines may say the same tokens: the rollout engine's log-probs are renormalised over "
        f"tokens to which the trainer gives a mass of {1 - missing:.3f}.",
        questions=(
            "which top_p, top_k and min_p did the rollout engine sample with?",
            "are its log-probs taken before or after that filter?",
        ),
    )


TRUNCATION = Detector(
    fault="truncation",
    stage=5,
    needs=("logp_mu", "logp_old"),
    measure=_ratio_terms,
    judge=_truncation,
    rule=f"mean(exp D) is {SURE:g} standard deviations below 1, also without the {FEW:.0%} of the tokens whose D is "
    f"lowest, by more than {UNSEEN:g} times k3 and than {MASS:g}; at least {LEAST} tokens of which none decides",
)


def _scores(chunk: Chunk) -> tuple[Tensor, Tensor]:
    """log π + H, `[B, L]` nats, the score of an inverse temperature at 1; and where it is known."""
    assert chunk.logp_old is not None
    assert chunk.entropy is not None
    known = chunk.usable & chunk.entropy.isfinite()
    return torch.where(known, chunk.logp_old + chunk.entropy, 0.0), known


def _score_terms(chunk: Chunk) -> Sums:
    score, known = _scores(chunk)
    weighted = log_ratio(chunk).clamp(max=LIMIT).exp() * score
    return _moments(known, weighted) | _named("plain", _moments(known, score)) | _named("ratio", _ratio_terms(chunk))


def _named(prefix: str, sums: Sums) -> Sums:
    return {f"{prefix}_{name}": x for name, x in sums.items()}


def _part(prefix: str, sums: Sums) -> Sums:
    return {name.removeprefix(f"{prefix}_"): x for name, x in sums.items() if name.startswith(f"{prefix}_")}


def _unrecorded(sums: Sums, known: Known) -> Finding | None:
    sigmas = _sigmas(sums)
    if abs(sigmas) < SURE or _truncation(_part("ratio", sums), known) is not None:
        return None
    plain = _part("plain", sums)
    beta = 1 + float(plain["sum"]) / float(plain["square"])
    surer = sigmas > 0
    cause = "at a lower temperature, or within top-p or top-k" if surer else "at a higher temperature"
    return Finding(
        fault="sampling not recorded",
        evidence=f"sampled tokens are {'likelier' if surer else 'less likely'} than the trainer's entropy says, by "
        f"{abs(sigmas):.0f} standard deviations, and the recorded log-probs do not account for it: sampled {cause} (as "
        f"with an inverse temperature of {beta:.2f}), which they do not hold.",
        questions=(
            "which temperature, top_p, top_k and min_p did the rollout engine sample with?",
            "does the engine return raw log-probs, as vLLM's logprobs_mode=raw_logprobs does?",
        ),
    )


UNRECORDED = Detector(
    fault="sampling not recorded",
    stage=5,
    needs=("logp_mu", "logp_old", "entropy"),
    measure=_score_terms,
    judge=_unrecorded,
    rule=f"mean(exp(D) (log pi + H)) is {SURE:g} standard deviations from 0, and mean(exp D) is not below 1; at least "
    f"{LEAST} tokens of which none decides",
)


def _line(score: Tensor, known: Tensor, chunk: Chunk) -> Sums:
    """Sums for a straight line of D in a score: between the engines, for what noise adds to D it takes from one."""
    d = torch.where(known, log_ratio(chunk), 0.0)
    middle = torch.where(known, score - d / 2, 0.0)
    names = {"s": middle, "d": d, "ss": middle.square(), "sd": middle * d, "dd": d.square(), "n": known.double()}
    return {name: x.sum() for name, x in names.items()}


def _fit(sums: Sums) -> tuple[float, float]:
    """Slope of the line, and the share of the variance of D that it explains; 0 of both where there is none."""
    n = max(1.0, float(sums["n"]))
    mean_s, mean_d = float(sums["s"]) / n, float(sums["d"]) / n
    ss, dd = float(sums["ss"]) / n - mean_s**2, float(sums["dd"]) / n - mean_d**2
    sd = float(sums["sd"]) / n - mean_s * mean_d
    return (sd / ss, sd**2 / (ss * dd)) if n >= LEAST and ss > 0 and dd > 0 else (0.0, 0.0)


def _line_terms(chunk: Chunk) -> Sums:
    score, known = _scores(chunk)
    return _line(score, known, chunk) | _named("plain", _moments(known, score))


def _temperature(sums: Sums, known: Known) -> Finding | None:
    slope, explained = _fit(sums)
    plain = _part("plain", sums)
    sigmas = _sigmas(plain)
    if explained < FITS or abs(slope) < SLOPE or not sigmas:
        return None
    of_line, of_samples = _beta(slope) - 1, float(plain["sum"]) / float(plain["square"])
    if not _agree(of_line, of_samples, of_samples / sigmas):
        return None
    return _tempered(slope, explained, ", and the sampled tokens are as likely as at that temperature")


def _beta(slope: float) -> float:
    """The inverse temperature of the rollout engine of a slope of D between the engines.

    D = (1 - β) (log π + H) + ... and slope = (1 - β) / ((1 + β) / 2)
    """
    return (1 - slope / 2) / (1 + slope / 2)


def _tempered(slope: float, explained: float, more: str) -> Finding:
    return Finding(
        fault="temperature",
        evidence=f"D lies on a line in log p of slope {slope:+.3f} that explains {explained:.0%} of its variance{more}:"
        f" the rollout engine's log-probs are at {1 / _beta(slope):.3f} of the trainer's temperature.",
        questions=(
            "which temperature do the rollout engine and the trainer divide their logits by?",
            "do the two agree on whether log-probs are taken before or after it?",
        ),
    )


def _agree(line: float, samples: float, spread: float) -> bool:
    """Whether both estimates of β - 1 are of one temperature: within a factor, or within four spreads of the noisier,
    which must show a sign."""
    if abs(samples) < 2 * abs(spread) or line * samples <= 0:
        return False
    return 1 / AGREE <= samples / line <= AGREE or abs(samples - line) <= 4 * abs(spread)


TEMPERATURE = Detector(
    fault="temperature",
    stage=5,
    needs=("logp_mu", "logp_old", "entropy"),
    measure=_line_terms,
    judge=_temperature,
    rule=f"a line of D in log p + H explains {FITS:.0%} of the variance of D, and the mean of log pi + H over what was "
    f"sampled shows the same temperature within a factor of {AGREE:g} or four standard deviations",
)


def _blind_terms(chunk: Chunk) -> Sums:
    assert chunk.logp_old is not None
    kept = chunk.usable if chunk.entropy is None else torch.zeros_like(chunk.usable)
    d = log_ratio(chunk)
    k3 = torch.where(kept, d.clamp(max=LIMIT).expm1() - d, 0.0).sum()
    return _line(torch.where(kept, chunk.logp_old, 0.0), kept, chunk) | {"k3": k3}


def _blind(sums: Sums, known: Known) -> Finding | None:
    slope, explained = _fit(sums)
    if explained < FITS or abs(slope) < SLOPE or float(sums["k3"]) > NEAR * float(sums["n"]):
        return None
    return _tempered(slope, explained, "; with the entropies it could be told from weights that are sharper")


BLIND_TEMPERATURE = Detector(
    fault="temperature",
    stage=5,
    needs=("logp_mu", "logp_old"),
    measure=_blind_terms,
    judge=_blind,
    rule=f"no entropies: a line of D in log p explains {FITS:.0%} of the variance of D, and k3 is {NEAR:g} at most",
)
