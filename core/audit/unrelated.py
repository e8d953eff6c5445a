"""Log-probs of two engines that hardly speak of the same tokens, whatever made them so.

    r = corr(log μ, log π_old) over the usable tokens

Two engines with the same weights agree on which tokens were likely, however coarse their numerics: over simulated
engines with a k3 below 0.1 nats a token and made-up text r is 0.53 and more. A fault with a name of its own is found
before this one.

Shapes: B responses, L positions.
"""

from __future__ import annotations

import torch

from firstorder.core.formats.chunk import Chunk

from .clusters import LIMIT, log_ratio
from .finding import Detector, Finding, Known, Sums

RELATED = 0.5  # of r: below it less than a quarter of what one engine says is in what the other says
LEAST = 300  # tokens
LARGE = 0.1  # nats a token of k3: below it engines of coarse numerics may be that far apart on nearly certain tokens


def pair_sums(chunk: Chunk) -> Sums:
    """n, Σ x, Σ y, Σ x², Σ y², Σ xy of the log-probs of both engines, and Σ (exp D - D - 1)."""
    assert chunk.logp_mu is not None
    assert chunk.logp_old is not None
    usable, d = chunk.usable, log_ratio(chunk)
    x, y = chunk.logp_mu[usable], chunk.logp_old[usable]
    k3 = (d.clamp(max=LIMIT).expm1() - d)[usable]
    n = torch.tensor(float(len(x)), dtype=torch.float64)
    return {"pairs": torch.stack([n, x.sum(), y.sum(), x.square().sum(), y.square().sum(), (x * y).sum(), k3.sum()])}


def judge_unrelated(sums: Sums, known: Known) -> Finding | None:
    """A correlation below `RELATED`."""
    n, x, y, xx, yy, xy, k3 = sums["pairs"].tolist()
    if n < LEAST or k3 / n < LARGE:
        return None
    spread = (xx / n - (x / n) ** 2) * (yy / n - (y / n) ** 2)
    r = (xy / n - x * y / n**2) / spread**0.5 if spread > 0 else 0.0
    if r >= RELATED:
        return None
    return Finding(
        fault="unrelated log-probs",
        evidence=f"log-probs of the two engines correlate by {r:.2f} over {int(n):,} tokens, at a k3 of {k3 / n:.2g} "
        "nats a token: they hardly speak of the same tokens, and no fault that is known here explains it.",
        questions=(
            "do tokens, rows and weights of both belong together: what does `firstorder probe` say of one batch?",
            "does one engine's model, tokenizer or template differ from the other's?",
        ),
    )


DETECTORS = (
    Detector(
        fault="unrelated log-probs",
        stage=6,
        needs=("logp_mu", "logp_old"),
        measure=pair_sums,
        judge=judge_unrelated,
        rule=f"the log-probs of both engines correlate by less than {RELATED:g} over {LEAST} tokens or more, and k3 is "
        f"{LARGE:g} nats a token or more",
    ),
)
