"""Order of routes: by a token, by the length of a prompt, by a layer, or of another response.

Two sets are compared by how many experts they share, |A ∩ B|, where the file says that they belong together and where
another reading says so.

Shapes: B responses, L positions, M MoE layers, K experts a token, N tokens of a response.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.core.formats.chunk import Chunk
from firstorder.core.training.replay import run_rows

from .finding import EACH, Detector, Finding, Known, Sums, first
from .odds import Z_CHOSEN, Z, sign_z
from .pairing import way
from .rows import inner, shared, spread_layers

TOKENS = 2048  # of a chunk, at which two sets are compared by a token's shift
LAYERED = 256  # of a chunk, at which all layers are
LAYERS = 6  # compared by a token's shift; they are written together, so some speak for all
RESPONSES, ROWS = 16, 192  # of a chunk and of a response, at which all pairs of responses are compared
BOTH = ("routes", "routes_old")
MOVES = (-1, 1)


def order_sums(chunk: Chunk) -> Sums:
    """Tokens at which two sets agree better when one is moved by a token, by a layer, to another response."""
    assert chunk.routes is not None
    assert chunk.routes_old is not None
    return _token_moves(chunk) | _layer_moves(chunk) | _response_moves(chunk)


def _token_moves(chunk: Chunk) -> Sums:
    assert chunk.routes is not None
    assert chunk.routes_old is not None
    a, b = chunk.routes.flatten(0, 1), chunk.routes_old.flatten(0, 1)
    place, layers = inner(chunk, TOKENS), spread_layers(a.shape[1], LAYERS)
    old = b[place][:, layers]
    response, position = place // chunk.tokens.shape[-1], place % chunk.tokens.shape[-1]
    start = chunk.mask.int().argmax(-1)[response]
    here = shared(a[place][:, layers], old).sum(-1)

    def moved(by: Tensor | int) -> Tensor:
        inside = position - by >= 0
        there = shared(a[(place - by).clamp(min=0)][:, layers], old).sum(-1)
        return torch.where(inside, there, here)  # neither wins nor loses

    score = [*(moved(s) for s in MOVES), moved(start), moved(start - 1)]
    count = len(chunk.samples)

    def by_response(hit: Tensor) -> Tensor:
        return torch.bincount(response, hit.double(), count).long()

    wins = torch.stack([by_response(x > here) for x in score], dim=-1)
    losses = torch.stack([by_response(x < here) for x in score], dim=-1)
    means = torch.stack([x.sum() for x in (here, *score)]).double() / (len(layers) * a.shape[-1])
    return {
        EACH + "token wins": wins,
        EACH + "token losses": losses,
        "token agreement": means,
        "tokens": torch.tensor(len(place)),
    }


def _layer_moves(chunk: Chunk) -> Sums:
    """By layer, tokens at which layer m of the rollout agrees better with layer m + s of the trainer, `[2, M - 1]`."""
    assert chunk.routes is not None
    assert chunk.routes_old is not None
    place = inner(chunk, LAYERED)
    a, b = (x.flatten(0, 1)[place] for x in (chunk.routes, chunk.routes_old))
    none = torch.zeros((), dtype=torch.int64)
    if a.shape[1] < 2:
        return {"layer wins": none.expand(2, 1), "layer losses": none.expand(2, 1)}
    wins, losses = [], []
    for s in MOVES:
        left, right = (slice(None, -1), slice(1, None)) if s > 0 else (slice(1, None), slice(None, -1))
        there, here = shared(a[:, left], b[:, right]), shared(a[:, left], b[:, left])
        wins.append((there > here).sum(0))
        losses.append((there < here).sum(0))
    return {"layer wins": torch.stack(wins), "layer losses": torch.stack(losses)}


def _response_moves(chunk: Chunk) -> Sums:
    """The best other partner of every response, as for log-probs in `pairing`."""
    assert chunk.routes is not None
    assert chunk.routes_old is not None
    layers = spread_layers(chunk.routes.shape[2], 4)
    place = slice(None, None, -(-chunk.tokens.shape[-1] // ROWS))
    a, b = (x[:RESPONSES, place][:, :, layers] for x in (chunk.routes, chunk.routes_old))
    run = run_rows(chunk.lengths, chunk.tokens.shape[-1])[:RESPONSES, place]
    own = shared(a, b).sum(-1)
    score = torch.stack([shared(x[None], b).sum(-1) for x in a])  # [i, j, N]
    both = run[:, None] & run[None]
    wins, losses = (both & (score > own[:, None])).sum(-1), (both & (score < own[:, None])).sum(-1)
    z, best = sign_z(wins, losses, dependence=1.0).max(-1)
    mean = (score * both).sum(-1) / both.sum(-1).clamp(min=1)
    found = mean.gather(-1, best[:, None])[:, 0]
    late = run & (torch.arange(run.shape[-1]) * 4 >= 3 * run.sum(-1, keepdim=True))  # a stale prefix ends before it
    specific = found > 1.5 * torch.maximum(mean.median(-1).values, (own * late).sum(-1) / late.sum(-1).clamp(min=1))
    count = len(chunk.samples)
    hits, partner = torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.int64)
    hits[: len(z)] = (z > Z_CHOSEN) & specific
    partner[: len(z)] = best - torch.arange(len(z))
    return {EACH + "strangers": hits, EACH + "partner": torch.where(hits, partner, 0)}


def judge_tokens(sums: Sums, known: Known) -> Finding | None:
    """All responses together, or some by themselves, agree better moved by one token."""
    if judge_prompt(sums, known) is not None:
        return None
    wins, losses = (sums[EACH + name][:, : len(MOVES)] for name in ("token wins", "token losses"))
    z, single = sign_z(wins.sum(0), losses.sum(0)), sign_z(wins, losses) > Z_CHOSEN
    if float(z.max()) <= Z and not single.any():
        return None
    best = int(z.argmax() if float(z.max()) > Z else single.sum(0).argmax())
    mean = sums["token agreement"] / sums["tokens"].clamp(min=1)
    told = ", ".join(f"{float(mean[i]):.3g} at {s:+d}" for i, s in ((1, -1), (0, 0), (2, 1)))
    return Finding(
        fault="routes off by one",
        evidence=f"routes of the rollout agree better with the trainer's one row {'later' if best else 'earlier'}: of "
        f"the experts of a row {told} are shared, over {int(sums['tokens'])} tokens.",
        questions=(
            "does row t hold the routing of token t, or that which produced token t?",
            "is a row dropped at the first token or at the last?",
        ),
        place=first(single[:, best]),
    )


def judge_prompt(sums: Sums, known: Known) -> Finding | None:
    """All responses together agree better when the rows are laid from the response on."""
    wins, losses = (sums[EACH + name].sum(0) for name in ("token wins", "token losses"))
    z = sign_z(wins, losses)
    best = int(z.argmax())
    if float(z.max()) <= Z or best < len(MOVES):
        return None
    mean = sums["token agreement"] / sums["tokens"].clamp(min=1)
    return Finding(
        fault="routes laid from the prompt",
        evidence=f"rows of the rollout that are laid from position 0 on agree with the trainer's of the response: "
        f"experts shared are {float(mean[best + 1]):.3g} of a row there and {float(mean[0]):.3g} as they stand.",
        questions=(
            "does the engine return rows of the generation alone, and those of the prompt apart?",
            "is the length of the prompt taken from the text before or after templates?",
        ),
    )


def judge_layers(sums: Sums, known: Known) -> Finding | None:
    """Most layers agree better with their neighbours."""
    z = sign_z(sums["layer wins"], sums["layer losses"], dependence=1.0)
    most = (z > Z).double().mean(-1)
    best = int(most.argmax())
    if float(most[best]) <= 0.5:
        return None
    wins, losses = int(sums["layer wins"][best].sum()), int(sums["layer losses"][best].sum())
    return Finding(
        fault="layers off by one",
        evidence=f"layer m of the rollout agrees better with layer m {'+' if best else '-'} 1 of the trainer than with "
        f"layer m, in {wins} of {wins + losses} rows that tell them apart.",
        questions=(
            "does one side count dense layers and the other MoE layers only?",
            "is a layer of multi-token prediction among those of one side?",
        ),
    )


def judge_strangers(sums: Sums, known: Known) -> Finding | None:
    """Some response agrees better with the routes of another."""
    hits, partner = sums[EACH + "strangers"], sums[EACH + "partner"]
    if not hits.any():
        return None
    return Finding(
        fault="routes of another response",
        evidence=f"the routes of {int(hits.sum())} of {len(hits)} responses agree with the trainer's of another "
        f"one{way(partner[hits])}.",
        questions=(
            "are routes and tokens sorted or balanced over ranks together?",
            "by which key are routes joined to responses?",
        ),
        place=first(hits),
    )


DETECTORS = (
    Detector(
        fault="routes off by one",
        stage=2,
        needs=BOTH,
        measure=order_sums,
        judge=judge_tokens,
        rule=f"a sign test of shared experts moved by one token against as they stand, in {LAYERS} layers and up to "
        f"{TOKENS} tokens of a chunk: z > {Z:g} over all, or {Z_CHOSEN:g} in a response by itself",
    ),
    Detector(
        fault="routes laid from the prompt",
        stage=2,
        needs=BOTH,
        measure=order_sums,
        judge=judge_prompt,
        rule=f"the same sign test with rows moved by the length of each prompt, or one less: best of all, z > {Z:g}",
    ),
    Detector(
        fault="layers off by one",
        stage=2,
        needs=BOTH,
        measure=order_sums,
        judge=judge_layers,
        rule=f"a sign test of shared experts against the next layer's: z > {Z:g} in most layers, over up to {LAYERED} "
        "tokens of a chunk",
    ),
    Detector(
        fault="routes of another response",
        stage=2,
        needs=BOTH,
        measure=order_sums,
        judge=judge_strangers,
        rule=f"among {RESPONSES} responses read together, at {ROWS} places: a sign test favours another "
        f"response's routes (z > {Z_CHOSEN:g}), which share half as many experts again as the median one's, and as its "
        "own in its last quarter",
    ),
)
