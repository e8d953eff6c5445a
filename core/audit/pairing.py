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
from .odds import DEPENDENCE, Z_CHOSEN, Z_SEVERAL, Z, bigrams, several, sign_z

RESPONSES = 32  # of a chunk, all pairs of which are tried
TOKENS = 256  # of each
ORDERED = 3.0  # z that the order of tokens must reach too: an offset between the engines brings strangers closer, too
RELATED = 0.6  # of pairs of tokens that both sides put in the same order: of unrelated columns it is 0.5
FEWEST = 500  # pairs


def pair_sums(chunk: Chunk) -> Sums:
    """Wins of the best other partner of every response, and how often both sides agree on which token is likelier."""
    assert chunk.logp_mu is not None
    assert chunk.logp_old is not None
    mu, old, seen, tokens = _compact(chunk)
    repeated = seen.sum(-1) / bigrams(tokens, seen).clamp(min=1)
    own = (mu - old).abs()
    both = seen[:, None] & seen[None]  # [i, j, N]
    other = (mu[:, None] - old[None]).abs()
    wins = (both & (other < own[:, None])).sum(-1)
    losses = (both & (other > own[:, None])).sum(-1)
    mean = torch.where(both, other, 0.0).sum(-1) / both.sum(-1).clamp(min=1)
    z, best = sign_z(wins, losses, repeated[:, None]).max(-1)
    typical = mean.median(-1).values
    specific = mean.gather(-1, best[:, None])[:, 0] < 0.5 * typical
    order = _ordered(mu, old[best], both[torch.arange(len(best)), best]) - _ordered(mu, old, seen)
    ordered = sign_z((order > 0).sum(-1), (order < 0).sum(-1), repeated) > ORDERED
    count = len(chunk.samples)
    strong, likely = (torch.zeros(count, dtype=torch.bool) for _ in range(2))
    partner, tried = (torch.zeros(count, dtype=torch.int64) for _ in range(2))
    strong[: len(z)] = (z > Z_CHOSEN) & specific & ordered
    likely[: len(z)] = (z > Z_SEVERAL) & specific & ordered
    partner[: len(z)], tried[: len(z)] = best - torch.arange(len(best)), len(best)
    agree, disagree = concordance(mu, old, seen)
    return {
        "agree": agree,
        "disagree": disagree,
        "tokens": seen.sum(),
        "bigrams": bigrams(tokens.reshape(1, -1), seen.reshape(1, -1))[0],
        EACH + "strong": strong,
        EACH + "likely": likely,
        EACH + "tried": tried,
        EACH + "partner": partner,
    }


def _compact(chunk: Chunk) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first sampled tokens of the first responses: log μ, log π_old, which there are, and ids, `[b, N]`."""
    assert chunk.logp_mu is not None
    assert chunk.logp_old is not None
    mask = sampled(chunk)[:RESPONSES]
    place = (~mask).int().argsort(dim=-1, stable=True)[:, :TOKENS]
    mu, old = (x[:RESPONSES].gather(-1, place) for x in (chunk.logp_mu, chunk.logp_old))
    seen = mask.gather(-1, place) & mu.isfinite() & old.isfinite()
    return torch.where(seen, mu, 0.0), torch.where(seen, old, 0.0), seen, chunk.tokens[:RESPONSES].gather(-1, place)


def _ordered(mu: Tensor, old: Tensor, seen: Tensor) -> Tensor:
    """1 where both sides put a token and the next in the same order, -1 where not, for every other token."""
    even = 2 * (mu.shape[-1] // 2)
    first, second = slice(0, even, 2), slice(1, even, 2)
    order = (mu[:, first] - mu[:, second]) * (old[:, first] - old[:, second])
    return torch.sign(order) * (seen[:, first] & seen[:, second])


def concordance(mu: Tensor, old: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of tokens that both sides put in the same order, and in opposite orders; disjoint pairs, ties left out."""
    x, y = mu[seen], old[seen]
    half = len(x) // 2
    order = (x[:half] - x[half : 2 * half]) * (y[:half] - y[half : 2 * half])
    return (order > 0).sum(), (order < 0).sum()


def judge_pairs(sums: Sums, known: Known) -> Finding | None:
    """A better partner for some response; or no response that is closer to its own than to another."""
    hits = several(*(sums[EACH + name] for name in ("strong", "likely", "tried")))
    partner = sums[EACH + "partner"]
    agree, n = int(sums["agree"]), int(sums["agree"] + sums["disagree"])
    share = agree / max(n, 1)
    repeated = float(sums["tokens"] / sums["bigrams"].clamp(min=1))
    unrelated = n >= FEWEST and share + Z * (DEPENDENCE * repeated / (4 * n)) ** 0.5 < RELATED
    if not hits.any() and not unrelated:
        return None
    told = (
        f"{int(hits.sum())} of {len(hits)} responses fit the trainer's log-probs of another one{way(partner[hits])}"
        if hits.any()
        else f"of {n} pairs of tokens {share:.0%} are in the same order on both sides, as in columns that have "
        "nothing to do with each other"
    )
    return Finding(
        fault="log-probs of another response",
        evidence=f"{told}.",
        questions=(
            "is one side shuffled, sorted by length or balanced over ranks before both are joined?",
            "by which key are rollout and trainer rows joined?",
        ),
        place=first(hits),
    )


def way(moves: Tensor) -> str:
    """Where the right partners stand, if all of several stand alike; of int64 `[n]` rows to them."""
    return f", always {int(moves[0]):+d} rows away" if len(moves) > 1 and bool((moves == moves[0]).all()) else ""


DETECTORS = (
    Detector(
        fault="log-probs of another response",
        stage=2,
        needs=("logp_mu", "logp_old"),
        measure=pair_sums,
        judge=judge_pairs,
        rule=f"among {RESPONSES} responses read together, by their first {TOKENS} tokens: a sign test favours another "
        f"response's log-probs (z > {Z_CHOSEN:g}, or {Z_SEVERAL:g} in more responses than chance gives), which are "
        f"twice as close as the median one's and in better order (z > {ORDERED:g}); or, of {FEWEST} pairs of tokens or "
        f"more, both sides put fewer than {RELATED:.0%} in the same order (z > {Z:g})",
    ),
)
