"""Whether a discrepancy is normal for its precision, length and entropy.

Shapes: B responses, L positions, G bins of probability.

**Entropy** (derived). Engines whose logits differ by independent noise of σ nats have, to first order in σ,

    Var(D | token) = σ² (1 - 2 p + Σ_a p_a²),    between σ² (1 - p)² and 2 σ² (1 - p)²
    E[D²] = σ² E[1 - p]                          since E_μ[p] = Σ_a p_a²

so that σ = √(mean D² / mean(1 - p)) tells engines apart whatever the entropy of the policy, and the root mean square of
D over that of 1 - p lies between σ and √2 σ at any p: what does not is no rounding.

**Length** (derived). If ΣD of a response is normal with T independent tokens, its weight exp ΣD keeps exp(-2 k3 T) of a
sample. (Measured) from which length on training without importance sampling collapses at a KL is a border that
simulated runs have found; who calls passes it in, as a function.

**Precision** (measured). σ of the simulator's engines, over policies whose mean 1 - p is 0.1 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core.formats.chunk import Chunk

from .clusters import FEW, LIMIT, gather, log_ratio, t_score
from .finding import Detector, Finding, Known, Sums

Border = Callable[[float], float]
"""From a KL in nats a token to the length in tokens from which on training without importance sampling collapses."""

EDGES = (0.01, 0.05, 0.2, 0.5, 0.8, 0.95)  # of 1 - p
SURE = 3.0  # standard deviations that a KL may be below what was measured
LEAST = 300  # tokens, below which a size is not judged
OF_BIN = 100  # tokens of a bin whose size is looked at
ROUNDING = 3.0  # times outside [σ, √2 σ], up to which a bin is like rounding: simulated bf16 with flips leaves it by 2
SIMULATED = {"fp16": 0.05, "bf16": 0.75, "fp8": 1.3}
"""The largest σ of the simulator's engines of a precision over policies and seeds, routes not replayed, nats of a
logit: of very sure policies, a few of whose contexts flip. None of fp32, where all hangs on whether a route flips."""
TYPICAL = {"fp32": 3e-7, "fp16": 0.003, "bf16": 0.03, "fp8": 0.1}
"""Their median."""
BEYOND = 2.0  # times the largest: real models are deeper


@dataclass(frozen=True, kw_only=True)
class Size:
    """How far two engines are apart.

    Args:
        tokens, responses: that were measured.
        k3: mean(exp D - D - 1), nats a token, and `k3_low` what it is at least.
        mean_abs: mean |D|, nats.
        noise: σ, nats of a logit; `noise_low` what it is at least.
        surprise: mean 1 - p.
        profile: by bin of 1 - p the root mean square of D over that of 1 - p, over σ; None where few tokens are.
    """

    tokens: int
    responses: int
    k3: float
    k3_low: float
    mean_abs: float
    noise: float
    noise_low: float
    surprise: float
    profile: tuple[float | None, ...]

    @property
    def length(self) -> float:
        """Response tokens of a response, on average."""
        return self.tokens / max(1, self.responses)

    @property
    def kept(self) -> float:
        """Share of a sample that sequence weights would keep, exp(-2 k3 T)."""
        return math.exp(-2 * self.k3 * self.length)

    @property
    def off(self) -> float:
        """How far the profile leaves [σ, √2 σ], as a factor of at least 1."""
        known = [x for x in self.profile if x is not None]
        return max([1.0, *(x / math.sqrt(2) for x in known), *(1 / max(x, 1e-9) for x in known)])


def terms(chunk: Chunk) -> Sums:
    """Sums over a chunk that `size` reads."""
    assert chunk.logp_old is not None
    kept, d = chunk.usable, log_ratio(chunk)
    rest = torch.where(kept, -chunk.logp_old.expm1(), 0.0)
    k3 = (d.clamp(max=LIMIT).expm1() - d).clamp(min=0.0)
    bins = torch.bucketize(rest, torch.tensor(EDGES, dtype=rest.dtype), right=True)

    def by_bin(x: Tensor) -> Tensor:
        return torch.zeros(len(EDGES) + 1, dtype=torch.float64).index_add_(0, bins[kept], x[kept].double())

    sums = gather(kept, [kept.double(), k3, d.abs(), d.square(), rest])
    return sums | {
        "squares": by_bin(d.square()),
        "scales": by_bin(rest.square()),
        "counts": by_bin(torch.ones_like(d)),
    }


def size(sums: Sums) -> Size:
    """The size of a discrepancy from the sums of `terms`; lower ends are three standard deviations below, clustered by
    response (as of a t distribution), and 0 where there are fewer than 8 responses."""
    n, k3, absolute, square, rest = sums["total"].tolist()
    n, rest = max(n, 1.0), max(rest, 1e-300)
    noise = math.sqrt(square / rest)
    scale = (sums["scales"] / sums["counts"].clamp(min=1)).sqrt() * max(noise, 1e-300)
    of_bin = (sums["squares"] / sums["counts"].clamp(min=1)).sqrt() / scale.clamp(min=1e-300)
    counts = sums["counts"].tolist()
    return Size(
        tokens=int(n),
        responses=int(sums["clusters"]),
        k3=k3 / n,
        k3_low=_low(sums, 1, 0),
        mean_abs=absolute / n,
        noise=noise,
        noise_low=math.sqrt(_low(sums, 3, 4)),
        surprise=rest / n,
        profile=tuple(x if c >= OF_BIN else None for x, c in zip(of_bin.tolist(), counts, strict=True)),
    )


def _low(sums: Sums, above: int, below: int) -> float:
    """What a ratio of sums is at least."""
    a, b = float(sums["total"][above]), float(sums["total"][below])
    if int(sums["clusters"]) < FEW or b <= 0:
        return 0.0
    sure = t_score(SURE, int(sums["clusters"]))
    slope = torch.zeros(len(sums["total"]), dtype=torch.float64)
    slope[above], slope[below] = 1 / b, -a / b**2
    return max(0.0, a / b - sure * math.sqrt(max(0.0, float(slope @ sums["square"] @ slope))))


def large_for_length(border: Border) -> Detector:
    """The detector of discrepancies beyond the border at which simulated training collapses.

    Args:
        border: length in tokens at a KL in nats a token, as the studies' runs have found it.
    """

    def judge(sums: Sums, known: Known) -> Finding | None:
        found = size(sums)
        if found.tokens < LEAST or not found.k3_low or found.length < border(found.k3_low):
            return None
        return Finding(
            fault="large for its length",
            evidence=f"k3 is {found.k3:.2g} nats a token (at least {found.k3_low:.2g}) in responses of "
            f"{found.length:,.0f} tokens, and simulated training without importance sampling collapsed from "
            f"{border(found.k3_low):,.0f} tokens on at that KL; a sequence weight keeps {_percent(found.kept)} of a "
            "sample.",
            questions=(
                "does the loss hold a ratio or a mask against the rollout engine: `firstorder recommend`?",
                "what of it goes with replayed routes, with fp16, and with the router and the head in fp32?",
            ),
        )

    return Detector(
        fault="large for its length",
        stage=6,
        needs=("logp_mu", "logp_old"),
        measure=terms,
        judge=judge,
        rule=f"the mean length is at least the border of the simulated runs at k3 less {SURE:g} standard deviations, "
        f"clustered by response; {FEW} responses of together {LEAST} tokens at least",
    )


def _large_for_precision(sums: Sums, known: Known) -> Finding | None:
    most = SIMULATED.get(known.precision or "")
    found = size(sums)
    if most is None or found.tokens < LEAST or found.noise_low <= BEYOND * most:
        return None
    return Finding(
        fault="large for its precision",
        evidence=f"the logits of the two engines differ by {found.noise:.2g} nats (at least {found.noise_low:.2g}), "
        f"more than {BEYOND:g} times the {most:g} that {known.precision} comes to in the simulator: k3 is "
        f"{found.k3:.2g} nats a token, and rounding does not explain it.",
        questions=(
            "do both engines hold the same weights: what are the log-probs of one batch right after a weight sync?",
            "which tensors differ: do checksums of the weights agree, router, experts and norms apart?",
        ),
    )


PRECISION = Detector(
    fault="large for its precision",
    stage=6,
    needs=("logp_mu", "logp_old"),
    measure=terms,
    judge=_large_for_precision,
    rule=f"sqrt(mean D^2 / mean(1 - p)), less {SURE:g} standard deviations clustered by response, is above {BEYOND:g} "
    "times the largest of the simulator's engines of the precision: "
    + ", ".join(f"{name} {most:g}" for name, most in SIMULATED.items()),
)


def normal(sums: Sums, known: Known, border: Border | None = None) -> str:
    """What the sizes are, in sentences with their figures, each with where it comes from: derived, simulated, or not
    known.

    Args:
        sums: of `terms`.
        known: what is known of the run.
        border: as of `large_for_length`; None where nobody passes one.
    """
    found = size(sums)
    parts = [
        f"k3 is {found.k3:.2g} nats a token and mean |D| {found.mean_abs:.2g} at a mean 1 - p of {found.surprise:.2f}, "
        f"as of logits that differ by {found.noise:.2g} nats (derived).",
        _by_precision(found, known.precision),
        _by_probability(found),
        f"Over {found.length:,.0f} tokens a sequence weight keeps {_percent(found.kept)} of a sample (derived).",
    ]
    if border is not None and found.k3 > 0:
        parts.append(_by_length(found, border(found.k3)))
    return " ".join(part for part in parts if part)


def _by_precision(found: Size, precision: str | None) -> str:
    usual, most = TYPICAL.get(precision or ""), SIMULATED.get(precision or "")
    if usual is None:
        each = ", ".join(f"{size:g} in {name}" for name, size in TYPICAL.items())
        return f"In the simulator half of the policies stay below {each}."
    largest = f", and to {most:g} at most" if most else ""
    return f"In the simulator, {precision} comes to {usual:g} for half of the policies{largest}."


def _by_probability(found: Size) -> str:
    if all(x is None for x in found.profile):
        return ""
    like = "like rounding" if found.off <= ROUNDING else "not like rounding"
    return f"By probability of the token it is {like}: within a factor of {max(1.1, found.off):.1f} of what noise has."


def _by_length(found: Size, border: float) -> str:
    if not math.isfinite(border):
        return "At so small a KL no border is known beyond which simulated training collapsed."
    side = "below" if found.length < border else "above"
    return (
        f"Simulated training without importance sampling collapsed from about {border:,.0f} tokens on at that KL; "
        f"these responses are {side} it."
    )


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "less than 1 %"
