"""Pairing: whether log-probs belong to the response that they stand beside.

    wins(i, j) = #{n : |log μ_i(n) - log π_old,j(n)| < |log μ_i(n) - log π_old,i(n)|},   n counts the tokens of the mask

The tokens of another response are as good as unrelated, so that the right partner is closer at nearly all of them.

Shapes: B responses, L positions, N tokens of a response that are compared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.core.formats.chunk import Chunk

from .columns import sampled
from .finding import EACH, Detector, Finding, Known, Sums, first
from .odds import DEPENDENCE, Z, Z_CHOSEN, sign_z

RESPONSES = 32  # of a chunk, all pairs of which are tried
TOKENS = 256  # of each
RELATED = 0.6  # share of tokens closer to their own than to another response's: unrelated columns have 0.5
FEWEST = 1000  # tokens


def pair_sums(chunk: Chunk) -> Sums:
    """Wins of the best other partner of every response, and how often the own one is closer than another."""
    assert chunk.logp_mu is not None
    assert chunk.logp_old is not None
    mu, old, seen = _compact(chunk)
    own = (mu - old).abs()
    both = seen[:, None] & seen[None]  # [i, j, N]
    other = (mu[:, None] - old[None]).abs()
    wins = (both & (other < own[:, None])).sum(-1)
    losses = (both & (other > own[:, None])).sum(-1)
    mean = torch.where(both, other, 0.0).sum(-1) / both.sum(-1).clamp(min=1)
    z, best = sign_z(wins, losses, dependence=1.0).max(-1)
    typical = mean.median(-1).values
    specific = mean.gather(-1, best[:, None])[:, 0] < 0.5 * typical
    count = len(chunk.samples)
    hits, partner = torch.zeros(count, dtype=torch.bool), torch.full((count,), -1)
    hits[: len(z)] = (z > Z_CHOSEN) & specific
    partner[: len(z)] = best
    near = torch.roll(torch.arange(len(z)), 1)  # one other response for each: tokens count once
    row = torch.arange(len(z))
    apart = near != row
    return {
        "closer": losses[row, near][apart].sum(),
        "farther": wins[row, near][apart].sum(),
        EACH + "hits": hits,
        EACH + "partner": torch.where(hits, partner - torch.arange(count), 0),
    }


def _compact(chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
    """The first sampled tokens of the first responses side by side: log μ, log π_old, and which there are, `[b, N]`."""
    assert chunk.logp_mu is not None
    assert chunk.logp_old is not None
    mask = sampled(chunk)[:RESPONSES]
    place = (~mask).int().argsort(dim=-1, stable=True)[:, :TOKENS]
    mu, old = (x[:RESPONSES].gather(-1, place) for x in (chunk.logp_mu, chunk.logp_old))
    seen = mask.gather(-1, place) & mu.isfinite() & old.isfinite()
    return torch.where(seen, mu, 0.0), torch.where(seen, old, 0.0), seen


def judge_pairs(sums: Sums, known: Known) -> Finding | None:
    """A better partner for some response; or no response that is closer to its own than to another."""
    hits, partner = sums[EACH + "hits"], sums[EACH + "partner"]
    closer, farther = int(sums["closer"]), int(sums["farther"])
    n = closer + farther
    share = closer / max(n, 1)
    unrelated = n >= FEWEST and share + Z * (DEPENDENCE / (4 * max(n, 1))) ** 0.5 < RELATED
    if not hits.any() and not unrelated:
        return None
    moves = partner[hits].unique()
    steps = f", always {int(moves[0]):+d} rows away" if len(moves) == 1 and int(hits.sum()) > 1 else ""
    told = (
        f"{int(hits.sum())} of {len(hits)} responses fit the trainer's log-probs of another one{steps}"
        if hits.any()
        else f"of {n} tokens {share:.0%} are closer to the trainer's log-prob of their own response than to that of "
        "another: the two columns have nothing to do with each other"
    )
    return Finding(
        fault="log-probs of another response",
        evidence=told,
        questions=(
            "Is one side shuffled, sorted by length or balanced over ranks before both are joined?",
            "By which key are rollout and trainer rows joined?",
        ),
        place=first(hits),
    )


DETECTORS = (
    Detector(
        fault="log-probs of another response",
        stage=2,
        needs=("logp_mu", "logp_old"),
        measure=pair_sums,
        judge=judge_pairs,
        rule=f"among {RESPONSES} responses read together, by their first {TOKENS} tokens: a sign test favours another "
        f"response's log-probs (z > {Z_CHOSEN:g}) which are twice as close as the median one's; or, of {FEWEST} tokens or "
        f"more, fewer than {RELATED:.0%} are closer to their own",
    ),
)
