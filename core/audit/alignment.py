"""Alignment of log-probs: by a token, by the length of a prompt, by a padding.

    wins(s) = #{t : |log μ(t - s) - log π_old(t)| < |log μ(t) - log π_old(t)|},   losses(s) = #{t : >}

Where both engines hold the same weights and position t holds token t, moving one of them loses far more often than it
wins; a sign test needs nothing else, neither how far the engines are apart nor how p is distributed. An offset between
the engines can bring neighbours closer than a token is to itself; so the order of the tokens is asked as well.

Shapes: B responses, L positions, S shifts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from firstorder.core.formats.chunk import Chunk
from firstorder.core.training.batch import shifted

from .columns import sampled
from .finding import EACH, Detector, Finding, Known, Sums, first
from .odds import DEPENDENCE, Z_CHOSEN, Z_SEVERAL, Z, bigrams, several, sign_z

WINDOW = 8  # positions to either side at which all responses together are tried; each by itself at any shift
SHIFTS = tuple(s for s in range(-WINDOW, WINDOW + 1) if s)
BOTH = ("logp_mu", "logp_old")
CLOSER = 5.0  # times: noise that is fixed by the context, in text that repeats, brings neighbours half as close
FEWEST_BIGRAMS = 8  # of a dump: with two contexts that take turns, neighbours may be close by chance
CONCORDANT = 1.0  # z that the order of tokens must reach too: it knows no offset, which can make neighbours look close
Compare = Callable[[Tensor], Tensor]


def shift_sums(chunk: Chunk) -> Sums:
    """Comparisons at every shift over all responses, and of each response at the shift that fits it best."""
    assert chunk.logp_mu is not None
    assert chunk.logp_old is not None
    known = sampled(chunk) & chunk.logp_mu.isfinite() & chunk.logp_old.isfinite()
    mu, old = (
        torch.where(known | ~chunk.mask, x.nan_to_num(0.0, 0.0, 0.0), 0.0) for x in (chunk.logp_mu, chunk.logp_old)
    )
    compare = comparison(mu, old, known)
    start, best = known.int().argmax(-1), best_shifts(mu, old, known)
    means = [shifted(mu, old, known, s) for s in (0, *SHIFTS)]
    return {
        "pooled": torch.stack([compare(torch.full_like(best, s)).sum(0) for s in SHIFTS]),
        "apart": torch.stack([torch.where(seen, apart, 0.0).sum() for apart, seen in means]),
        "count": torch.stack([seen.sum() for _, seen in means]),
        "prompt": compare(start).sum(0),
        "bigrams": bigrams(chunk.tokens.reshape(1, -1), known.reshape(1, -1))[0],
        EACH + "shift": best,
        EACH + "own": compare(best),
        EACH + "start": start,
        EACH + "bigrams": bigrams(chunk.tokens, known),
        EACH + "known": known.sum(-1),
    }


def comparison(mu: Tensor, old: Tensor, known: Tensor) -> Compare:
    """How a shift of each response compares with none: a function of int64 `[B]` to int64 `[B, 4]`.

    The four are wins and losses of |D|, and those of the order: pairs of tokens half a response apart, which log μ puts
    in the order of log π_old only when it is moved, or only as it stands. No offset, temperature or other monotone map
    between the engines changes the latter.
    """
    length = mu.shape[-1]
    place = torch.arange(length)
    start, end = known.int().argmax(-1), length - known.flip(-1).int().argmax(-1)
    partner = place + ((end - start) // 2 + 1)[:, None]
    inside, partner = partner < length, partner.clamp(max=length - 1)
    here, gap = (mu - old).abs(), old - old.gather(-1, partner)
    order = ((mu - mu.gather(-1, partner)) * gap).sign()

    def compare(shifts: Tensor) -> Tensor:
        source = place - shifts[:, None]
        moved = mu.gather(-1, source.clamp(0, length - 1))
        seen = known & (source >= 0) & (source < length) & (moved != 0)
        pair = seen & inside & seen.gather(-1, partner)
        there, turned = (moved - old).abs(), ((moved - moved.gather(-1, partner)) * gap).sign()
        hits = (seen & (there < here), seen & (there > here), pair & (turned > order), pair & (turned < order))
        return torch.stack([hit.sum(-1) for hit in hits], dim=-1)

    return compare


def best_shifts(mu: Tensor, old: Tensor, known: Tensor) -> Tensor:
    """The shift other than 0 at which log μ correlates best with log π_old, int64 `[B]`.

        argmax_s Σ_t f(log μ(t - s)) f(log π_old(t)),   f = log(-x), centred

    Args:
        mu: `[B, L]` nats; what is not 0 counts, also off the mask.
        old: `[B, L]` nats.
        known: bool `[B, L]`, the tokens of π_old that count.
    """
    length = mu.shape[-1]
    a, b = _centred(mu, mu != 0), _centred(old, known)
    correlation = torch.fft.irfft(torch.fft.rfft(a, 2 * length).conj() * torch.fft.rfft(b, 2 * length), 2 * length)
    correlation[..., 0] = -torch.inf
    lag = correlation.argmax(-1)
    return torch.where(lag < length, lag, lag - 2 * length)


def _centred(x: Tensor, seen: Tensor) -> Tensor:
    """log(-x) about its mean over the tokens seen, x held within [-20, -1e-6] nats; 0 elsewhere."""
    f = (-x).clamp(min=1e-6, max=20.0).log()
    mean = torch.where(seen, f, 0.0).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(seen, f - mean, 0.0).float()


def better(counts: Tensor, level: float, repeated: Tensor) -> Tensor:
    """Whether |D| and the order both favour the shift, bool `[...]`.

    Args:
        counts: comparisons `[..., 4]`.
        level: z of the first.
        repeated: `[...]`, by how much text that repeats itself adds to their variance: tokens / bigrams.
    """
    closer = sign_z(counts[..., 0], counts[..., 1], DEPENDENCE * repeated) > level
    return closer & (sign_z(counts[..., 2], counts[..., 3], DEPENDENCE * repeated) > CONCORDANT)


def _single(sums: Sums) -> Tensor:
    """Whether each response by itself fits better at its own shift, bool `[B]`."""
    own, repeated = sums[EACH + "own"], sums[EACH + "known"] / sums[EACH + "bigrams"].clamp(min=1)
    strong, likely = (better(own, z, repeated) for z in (Z_CHOSEN, Z_SEVERAL))
    return several(strong, likely, 2 * sums[EACH + "known"])


def _repeated(sums: Sums) -> Tensor:
    return sums["count"][0] / sums["bigrams"].clamp(min=1)


def judge_off_by_one(sums: Sums, known: Known) -> Finding | None:
    """All responses together, or most of those that show a shift by themselves, fit better moved by one."""
    together, single = _together(sums), _single(sums)
    one = single & (sums[EACH + "shift"].abs() == 1)
    best = together or (int(sums[EACH + "shift"][one].mode().values) if 2 * int(one.sum()) > int(single.sum()) else 0)
    if abs(best) != 1:
        return None
    return Finding(
        fault="off by one",
        evidence=f"log-probs of the rollout fit better {_way(best)}: {_means(sums, best)}; "
        f"{int(one.sum())} of {len(one)} responses show it by themselves.",
        questions=(
            "does one side drop the first token or the last when it lays log-probs beside tokens?",
            "is position t of both the log-prob of token t, or of token t + 1?",
        ),
        place=first(one),
    )


def judge_shifted(sums: Sums, known: Known) -> Finding | None:
    """As off by one, at any other shift, which may differ from response to response."""
    if judge_off_by_one(sums, known) is not None:
        return None
    together, single, shift = _together(sums), _single(sums), sums[EACH + "shift"]
    single &= shift.abs() > 1
    by_prompt = not together and bool(better(sums["prompt"], Z, _repeated(sums)))
    if not (together or by_prompt or single.any()):
        return None
    moves = shift[single]
    alike = len(moves) > 1 and bool((moves == moves[0]).all())
    how = _way(together) if together else "later by their prompts" if by_prompt else ""
    how = how or (_way(int(moves[0])) if alike else "moved, each by its own number of positions")
    return Finding(
        fault="log-probs shifted",
        evidence=f"log-probs of the rollout fit better {how}: {_means(sums, together)}; {int(single.sum())} of "
        f"{len(single)} responses show a shift by themselves.",
        questions=(
            "is one array laid out from the first token of the prompt and the other from that of the response?",
            "are responses padded on the left on one side and on the right on the other?",
        ),
        place=first(single),
    )


def _together(sums: Sums) -> int:
    """The shift that fits all responses together best, 0 where none fits better than none."""
    z = sign_z(sums["pooled"][:, 0], sums["pooled"][:, 1])
    fits = better(sums["pooled"], Z, _repeated(sums)) | (_far(sums) & better(sums["pooled"], Z, torch.ones(())))
    z = torch.where(fits, z, 0.0)
    return SHIFTS[int(z.argmax())] if float(z.max()) > 0 else 0


def _far(sums: Sums) -> Tensor:
    """Shifts that bring the engines so much closer that text which repeats itself is no excuse, bool `[S]`."""
    mean = sums["apart"] / sums["count"].clamp(min=1)
    return (CLOSER * mean[1:] < mean[0]) & (sums["bigrams"] >= FEWEST_BIGRAMS)


def _way(shift: int) -> str:
    return f"{abs(shift)} position{'s' if abs(shift) > 1 else ''} {'later' if shift > 0 else 'earlier'}"


def _means(sums: Sums, best: int) -> str:
    """Mean |D| at the shifts that people compare."""
    mean = sums["apart"] / sums["count"].clamp(min=1)
    told = dict.fromkeys((-1, 0, 1, best))
    return "mean |D| " + ", ".join(f"{float(mean[(0, *SHIFTS).index(s)]):.3g} at {s:+d}" for s in sorted(told))


DETECTORS = (
    Detector(
        fault="off by one",
        stage=2,
        needs=BOTH,
        measure=shift_sums,
        judge=judge_off_by_one,
        rule=f"a sign test of |D| moved by one position against |D| as it stands: z > {Z:g} over all tokens, best of "
        f"{WINDOW} positions to either side, text that repeats itself counting once unless |D| falls {CLOSER:g} times; "
        f"or z > {Z_CHOSEN:g} in a response by itself, or "
        f"{Z_SEVERAL:g} in more responses than chance gives",
    ),
    Detector(
        fault="log-probs shifted",
        stage=2,
        needs=BOTH,
        measure=shift_sums,
        judge=judge_shifted,
        rule=f"the same sign test at 2 to {WINDOW} positions, or the length of a prompt, over all tokens (z > {Z:g})"
        f", or in a response by itself, at its best correlation (z > {Z_CHOSEN:g}, or {Z_SEVERAL:g} in more "
        "responses than chance gives)",
    ),
)
