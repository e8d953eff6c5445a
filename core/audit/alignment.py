"""Alignment of log-probs: by a token, by a prompt or a padding, off the mask, or of another response.

    wins(s) = #{t : |log μ(t - s) - log π_old(t)| < |log μ(t) - log π_old(t)|},   losses(s) = #{t : >}

Where both engines hold the same weights and position t holds token t, moving one of them loses far more often than it
wins; a sign test needs nothing else, neither how far the engines are apart nor how p is distributed.

Shapes: B responses, L positions, S shifts, N tokens of a response that are compared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.core.formats.chunk import Chunk
from firstorder.core.training.batch import shifted

from .columns import sampled
from .finding import EACH, Detector, Finding, Known, Sums, first
from .odds import Z, Z_CHOSEN, sign_z

WINDOW = 8  # positions to either side at which all responses together are tried; each by itself at any shift
SHIFTS = tuple(s for s in range(-WINDOW, WINDOW + 1) if s)
BOTH = ("logp_mu", "logp_old")
OFF_SHARE = 0.5  # of the responses with log-probs beside the mask, for the mask to be called shifted


def shift_sums(chunk: Chunk) -> Sums:
    """Wins and losses of every shift over all responses, and of each response at the shift that fits it best."""
    assert chunk.logp_mu is not None
    assert chunk.logp_old is not None
    known = sampled(chunk) & chunk.logp_mu.isfinite() & chunk.logp_old.isfinite()
    mu, old = (
        torch.where(known | ~chunk.mask, x.nan_to_num(0.0, 0.0, 0.0), 0.0) for x in (chunk.logp_mu, chunk.logp_old)
    )
    here, _ = shifted(mu, old, known, 0)
    wins, losses, apart, count = [], [], [], []
    for shift in (0, *SHIFTS):
        there, seen = shifted(mu, old, known, shift)
        wins.append((seen & (there < here)).sum())
        losses.append((seen & (there > here)).sum())
        apart.append(torch.where(seen, there, 0.0).sum())
        count.append(seen.sum())
    best = best_shifts(mu, old, known)
    won, lost = _at(mu, old, known, best, here)
    each = {"shift": best, "wins": won, "losses": lost, "first": known.int().argmax(-1)}
    pooled = {"wins": wins[1:], "losses": losses[1:], "apart": apart, "count": count}
    return {name: torch.stack(x) for name, x in pooled.items()} | {EACH + name: x for name, x in each.items()}


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
    """log(-x) about its mean over the tokens seen, held within what probabilities of 1e-5 and less have; 0 elsewhere."""
    f = (-x).clamp(min=1e-6, max=20.0).log()
    mean = torch.where(seen, f, 0.0).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(seen, f - mean, 0.0).float()


def _at(mu: Tensor, old: Tensor, known: Tensor, shifts: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
    """Wins and losses of each response at its own shift, int64 `[B]` each."""
    place = torch.arange(mu.shape[-1]) - shifts[:, None]
    moved = mu.gather(-1, place.clamp(0, mu.shape[-1] - 1))
    seen = known & (place >= 0) & (place < mu.shape[-1]) & (moved != 0)
    there = (moved - old).abs()
    return (seen & (there < here)).sum(-1), (seen & (there > here)).sum(-1)


def judge_off_by_one(sums: Sums, known: Known) -> Finding | None:
    """All responses together, or some by themselves, fit better moved by one."""
    z, moved = _pooled(sums), _moved(sums)
    best = SHIFTS[int(z.argmax())]
    single = moved & (sums[EACH + "shift"].abs() == 1)
    together = float(z.max()) > Z and abs(best) == 1
    if not together and 2 * int(single.sum()) <= int(moved.sum()):
        return None
    if not single.any() and not together:
        return None
    if not together:
        best = int(sums[EACH + "shift"][single].mode().values)
    return Finding(
        fault="off by one",
        evidence=f"log-probs of the rollout fit better {_way(best)}: {_means(sums, best)}; "
        f"{int(single.sum())} of {len(single)} responses show it by themselves",
        questions=(
            "Does one side drop the first token or the last when it lays log-probs beside tokens?",
            "Is position t of both the log-prob of token t, or of token t + 1?",
        ),
        place=first(single),
    )


def judge_shifted(sums: Sums, known: Known) -> Finding | None:
    """As off by one, at any other shift, which may differ from response to response."""
    z, moved = _pooled(sums), _moved(sums)
    shift = sums[EACH + "shift"]
    best = SHIFTS[int(z.argmax())]
    single = moved & (shift.abs() > 1)
    together = float(z.max()) > Z and abs(best) > 1
    if not together and (not single.any() or 2 * int(single.sum()) <= int(moved.sum())):
        return None
    if float(z.max()) > Z and abs(best) == 1:
        return None
    shifts = shift[single].unique()
    prompts = int((single & (shift.abs() == sums[EACH + "first"])).sum())
    how = _way(best) if together else _way(int(shifts[0])) if len(shifts) == 1 else "moved by as many as differ"
    told = _means(sums, best) if together else f"{int(single.sum())} of {len(single)} responses show it by themselves"
    own = f"; in {prompts} of them by the length of the prompt" if prompts else ""
    return Finding(
        fault="log-probs shifted",
        evidence=f"log-probs of the rollout fit better {how}: {told}{own}",
        questions=(
            "Is one array laid out from the first token of the prompt and the other from that of the response?",
            "Are responses padded on the left on one side and on the right on the other?",
        ),
        place=first(single),
    )


def _pooled(sums: Sums) -> Tensor:
    """z of every shift, `[S]`."""
    return sign_z(sums["wins"], sums["losses"])


def _moved(sums: Sums) -> Tensor:
    """Whether each response by itself fits better at its own shift, bool `[B]`."""
    return sign_z(sums[EACH + "wins"], sums[EACH + "losses"]) > Z_CHOSEN


def _way(shift: int) -> str:
    return f"{abs(shift)} position{'s' if abs(shift) > 1 else ''} {'later' if shift > 0 else 'earlier'}"


def _means(sums: Sums, best: int) -> str:
    """Mean |D| at the shifts that people compare."""
    mean = sums["apart"] / sums["count"].clamp(min=1)
    told = dict.fromkeys((-1, 0, 1, best))
    return "mean |D| " + ", ".join(f"{float(mean[(0, *SHIFTS).index(s)]):.3g} at {s:+d}" for s in sorted(told))


def edge_sums(chunk: Chunk) -> Sums:
    """Responses whose rollout log-probs begin or end beside the mask: a number right outside, none right inside."""
    assert chunk.logp_mu is not None
    mask, there = sampled(chunk), chunk.logp_mu.nan_to_num(-1.0) != 0
    there[:, 0] = False
    outside = there & ~mask
    # a run of the mask whose array is late by one: no number at its first token, one right after its last; or early
    last = mask & ~torch.roll(mask, -1, dims=-1)
    start = mask & ~torch.roll(mask, 1, dims=-1)
    after = (torch.roll(last, 1, dims=-1) & outside).any(-1) & (start & ~there).any(-1)
    before = (torch.roll(start, -1, dims=-1) & outside).any(-1) & (last & ~there).any(-1)
    counted = mask.any(-1)
    prompt = torch.arange(mask.shape[-1]) < mask.int().argmax(-1, keepdim=True)
    return {
        "tokens": (outside & counted[:, None]).sum(),
        "prompt": (outside & counted[:, None] & prompt).sum(),
        "responses": counted.sum(),
        EACH + "late": after & counted,
        EACH + "early": before & counted,
        EACH + "outside": outside.any(-1) & counted,
    }


def judge_edges(sums: Sums, known: Known) -> Finding | None:
    """Any response with a log-prob off the mask."""
    outside = sums[EACH + "outside"]
    if not outside.any():
        return None
    late, early = (int(sums[EACH + name].sum()) for name in ("late", "early"))
    if max(late, early) >= OFF_SHARE * int(outside.sum()):
        told = (
            f"in {max(late, early)} they end one token {'after' if late >= early else 'before'} the mask and so begin"
        )
    elif int(sums["prompt"]) == int(sums["tokens"]):
        told = "all of them on the prompt"
    else:
        told = "the mask leaves out tokens to which the engine gave a log-prob"
    return Finding(
        fault="log-probs off the mask",
        evidence=f"{int(sums['tokens'])} log-probs of the rollout stand off the mask, in {int(outside.sum())} of "
        f"{int(sums['responses'])} responses; {told}",
        questions=(
            "Is the mask shifted against the log-probs, or narrower than what was sampled?",
            "Does the engine return log-probs of the prompt, and does the loss count them?",
        ),
        place=first(outside),
    )


DETECTORS = (
    Detector(
        fault="off by one",
        stage=2,
        needs=BOTH,
        measure=shift_sums,
        judge=judge_off_by_one,
        rule=f"a sign test of |D| moved by one position against |D| as it stands: z > {Z:g} over all tokens and best within "
        f"{WINDOW} positions, or z > {Z_CHOSEN:g} in a response by itself",
    ),
    Detector(
        fault="log-probs shifted",
        stage=2,
        needs=BOTH,
        measure=shift_sums,
        judge=judge_shifted,
        rule=f"the same sign test at 2 to {WINDOW} positions over all tokens (z > {Z:g}), or in a response by itself at the "
        f"shift where it correlates best (z > {Z_CHOSEN:g})",
    ),
    Detector(
        fault="log-probs off the mask",
        stage=2,
        needs=("logp_mu",),
        measure=edge_sums,
        judge=judge_edges,
        rule="any log-prob of the rollout that is not 0 where the mask is False, position 0 apart",
    ),
)
