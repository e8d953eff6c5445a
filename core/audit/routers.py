"""Whether D hangs on the experts: routes that were not replayed though they should have been, and imprecise routers.

Shapes: B responses, L positions, M MoE layers, K experts a token.

Where R3 replays the rollout engine's experts, those that the trainer would have chosen by itself make no difference to
its log-probs: |D| is as large where they differ as where they agree, but for the noise that made them differ. Where
nothing is replayed, other experts move a token by far more than rounding does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.core.formats.chunk import Chunk
from firstorder.core.routing import flips

from .clusters import compared, gather, sized
from .finding import Detector, Finding, Known, Sums

MORE = 5.0  # times as large where experts differ: in simulated engines with replay it came to 4.4, at few contexts
SURE = 5.0  # standard deviations, clustered by response: 3e-7 of a normal distribution, one-sided
LEAST = 30  # tokens whose experts differ
PRECISE = 1e-4  # share of rows that flip in fp32: logits that are off by 1e-6 swap experts closer than that, one in 1e5
FEWEST = 10  # rows that flip


def flipped(chunk: Chunk) -> tuple[Tensor, Tensor]:
    """Which layers chose other experts for the row that produced each token, and where both are known, bool
    `[B, L, M]`: row t - 1 of the routes for token t."""
    assert chunk.routes is not None
    assert chunk.routes_old is not None
    mu, old = chunk.routes[:, :-1], chunk.routes_old[:, :-1]
    known = (mu >= 0).all(-1) & (old >= 0).all(-1) & chunk.usable[:, 1:, None]
    moved = flips(mu, old) & known
    nothing = torch.zeros_like(known[:, :1])
    return torch.cat([nothing, moved], dim=1), torch.cat([nothing, known], dim=1)


def _flip_terms(chunk: Chunk) -> Sums:
    moved, known = flipped(chunk)
    rows = {"flips": moved.sum(), "rows": known.sum(), "responses": moved.any(-1).any(-1).sum()}
    token, there = moved.any(-1), known.any(-1)
    size, scale = sized(chunk)
    parts = [there & ~token, token]
    columns = [torch.where(part, x, 0.0) for x in (size, scale) for part in parts]
    return gather(there, columns) | rows | {"tokens": token.sum(), "of": there.sum()}


def _unreplayed(sums: Sums, known: Known) -> Finding | None:
    if known.replay != "R3" or int(sums["tokens"]) < LEAST:
        return None
    ratio, sigmas = compared(sums, ([1], [0]), MORE)
    if ratio < MORE or sigmas < SURE:
        return None
    share = int(sums["tokens"]) / int(sums["of"])
    return Finding(
        fault="routes not replayed",
        evidence=f"the run replays the rollout engine's routes, but |D| is {ratio:.1f} times as large (per 1 - p) at "
        f"the {share:.1%} of the tokens whose experts differ from the trainer's own, {sigmas:.0f} standard deviations "
        f"above {MORE:g} times: the log-probs are of live routing.",
        questions=(
            "do the trainer's receipts say how many rows were replayed, and how many of them changed a choice?",
            "is the replay on in the forward that makes the old log-probs, not only in the update?",
        ),
    )


UNREPLAYED = Detector(
    fault="routes not replayed",
    stage=5,
    needs=("logp_mu", "logp_old", "routes", "routes_old"),
    measure=_flip_terms,
    judge=_unreplayed,
    rule=f"under R3, the sum of |D| over that of 1 - p, at tokens of which a layer flips, is {MORE:g} times that at "
    f"the others by {SURE:g} standard deviations clustered by response; {LEAST} such tokens at least",
)


def _imprecise(sums: Sums, known: Known) -> Finding | None:
    rows, moved = max(1, int(sums["rows"])), int(sums["flips"])
    if known.precision != "fp32" or moved < FEWEST or moved < PRECISE * rows or int(sums["responses"]) < FEWEST // 2:
        return None
    total = sums["total"].view(2, -1)[0]
    share = float(total[1] / total.sum()) if float(total.sum()) > 0 else 0.0
    return Finding(
        fault="router precision",
        evidence=f"{moved / rows:.2%} of the rows choose other experts, more than fp32 routers can, and "
        f"the tokens concerned carry {share:.0%} of all |D|: the two engines' routers do not hold the same numbers.",
        questions=(
            "in which precision are the router's weights sent to the rollout engine, and its logits computed?",
            "does the trainer keep the router in fp32 while the rollout engine rounds it?",
        ),
    )


PRECISION = Detector(
    fault="router precision",
    stage=5,
    needs=("logp_mu", "logp_old", "routes", "routes_old"),
    measure=_flip_terms,
    judge=_imprecise,
    rule=f"in an engine of fp32, more than {PRECISE:.2%} of the rows choose other experts, {FEWEST} at least",
)
