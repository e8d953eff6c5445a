"""Order of routes: by a token, by a layer, of another response, or under other names of the experts.

Two sets are compared by how many experts they share, |A ∩ B|, where the file says that they belong together and where
another reading says so. One set alone is read against the tokens: what a router of an early layer chooses depends on
its token most, so rows of equal tokens agree, and those of unequal ones do not.

Shapes: B responses, L positions, M MoE layers, K experts a token, T tokens of a sample, E experts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from firstorder.core.formats.chunk import Chunk
from firstorder.core.training.replay import run_rows

from .finding import EACH, Detector, Finding, Known, Sums, first
from .odds import DEPENDENCE, LEVEL, Z, Z_CHOSEN, sign_z, tails
from .rows import SIDES, inner, shared, spread_layers

TOKENS = 2048  # of a chunk, at which two sets are compared by a token's shift
LAYERED = 256  # of a chunk, at which all layers are
LAYERS = 6  # compared by a token's shift; they are written together, so some speak for all
RESPONSES, ROWS = 16, 192  # of a chunk and of a response, at which all pairs of responses are compared
EARLY = 4  # layers from the first that are read against the tokens; dense ones among them agree everywhere
PAIRED = 8192  # tokens of a chunk whose rows are compared with the next one of the same id
FEWEST_PAIRS = 30
EXPERTS = 512  # the most ids that are told apart where a relabelling is looked for
RELABELLED = 0.5  # of the experts of a layer, whose tokens have another id on the other side
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
    score = {s: shared(a[place - s][:, layers], old).sum(-1) for s in (0, *MOVES)}
    response = place // chunk.tokens.shape[-1]
    count = len(chunk.samples)

    def by_response(hit: Tensor) -> Tensor:
        return torch.bincount(response, hit.double(), count).long()

    wins = torch.stack([by_response(score[s] > score[0]) for s in MOVES], dim=-1)
    losses = torch.stack([by_response(score[s] < score[0]) for s in MOVES], dim=-1)
    means = torch.stack([score[s].sum() for s in (0, *MOVES)]).double() / (len(layers) * a.shape[-1])
    return {
        EACH + "token wins": wins,
        EACH + "token losses": losses,
        "token agreement": means,
        "tokens": torch.tensor(len(place)),
    }


def _layer_moves(chunk: Chunk) -> Sums:
    """Per token, summed over the layers: layer m of the rollout against layer m + s of the trainer."""
    assert chunk.routes is not None
    assert chunk.routes_old is not None
    place = inner(chunk, LAYERED)
    a, b = (x.flatten(0, 1)[place] for x in (chunk.routes, chunk.routes_old))
    none = torch.zeros((), dtype=torch.int64)
    if a.shape[1] < 2:
        return {"layer wins": none.expand(2), "layer losses": none.expand(2)}
    wins, losses = [], []
    for s in MOVES:
        left, right = (slice(None, -1), slice(1, None)) if s > 0 else (slice(1, None), slice(None, -1))
        there, here = shared(a[:, left], b[:, right]).sum(-1), shared(a[:, left], b[:, left]).sum(-1)
        wins.append((there > here).sum())
        losses.append((there < here).sum())
    return {"layer wins": torch.stack(wins), "layer losses": torch.stack(losses)}


def _response_moves(chunk: Chunk) -> Sums:
    """The best other partner of every response, as for log-probs in `pairing`."""
    assert chunk.routes is not None
    assert chunk.routes_old is not None
    layers = spread_layers(chunk.routes.shape[2], 4)
    a, b = (x[:RESPONSES, :ROWS][:, :, layers] for x in (chunk.routes, chunk.routes_old))
    run = run_rows(chunk.lengths, chunk.tokens.shape[-1])[:RESPONSES, :ROWS]
    own = shared(a, b).sum(-1)
    score = torch.stack([shared(x[None], b).sum(-1) for x in a])  # [i, j, N]
    both = run[:, None] & run[None]
    wins, losses = (both & (score > own[:, None])).sum(-1), (both & (score < own[:, None])).sum(-1)
    z, best = sign_z(wins, losses, dependence=1.0).max(-1)
    mean = (score * both).sum(-1) / both.sum(-1).clamp(min=1)
    specific = mean.gather(-1, best[:, None])[:, 0] > 1.5 * mean.median(-1).values
    count = len(chunk.samples)
    hits, partner = torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.int64)
    hits[: len(z)] = (z > Z_CHOSEN) & specific
    partner[: len(z)] = best - torch.arange(len(z))
    return {EACH + "strangers": hits, EACH + "partner": torch.where(hits, partner, 0)}


def judge_tokens(sums: Sums, known: Known) -> Finding | None:
    """All responses together, or some by themselves, agree better moved by one token."""
    wins, losses = sums[EACH + "token wins"], sums[EACH + "token losses"]
    z, single = sign_z(wins.sum(0), losses.sum(0)), sign_z(wins, losses) > Z_CHOSEN
    if float(z.max()) <= Z and not single.any():
        return None
    best = int(z.argmax() if float(z.max()) > Z else single.sum(0).argmax())
    mean = sums["token agreement"] / sums["tokens"].clamp(min=1)
    told = ", ".join(f"{float(mean[i]):.3g} at {s:+d}" for i, s in ((1, -1), (0, 0), (2, 1)))
    return Finding(
        fault="routes off by one",
        evidence=f"routes of the rollout agree better with the trainer's one row {'later' if best else 'earlier'}: of the "
        f"experts of a row {told} are shared, over {int(sums['tokens'])} tokens",
        questions=(
            "Does row t hold the routing of token t, or that which produced token t?",
            "Is a row dropped at the first token or at the last?",
        ),
        place=first(single[:, best]),
    )


def judge_layers(sums: Sums, known: Known) -> Finding | None:
    """Layers agree better with their neighbours."""
    z = sign_z(sums["layer wins"], sums["layer losses"], dependence=1.0)
    if float(z.max()) <= Z:
        return None
    best = int(z.argmax())
    wins, losses = int(sums["layer wins"][best]), int(sums["layer losses"][best])
    return Finding(
        fault="layers off by one",
        evidence=f"layer m of the rollout agrees better with layer m {'+' if best else '-'} 1 of the trainer than with "
        f"layer m, at {wins} of {wins + losses} tokens",
        questions=(
            "Does one side count dense layers and the other MoE layers only?",
            "Is a layer of multi-token prediction among those of one side?",
        ),
    )


def judge_strangers(sums: Sums, known: Known) -> Finding | None:
    """Some response agrees better with the routes of another."""
    hits, partner = sums[EACH + "strangers"], sums[EACH + "partner"]
    if not hits.any():
        return None
    moves = partner[hits].unique()
    steps = f", always {int(moves[0]):+d} rows away" if len(moves) == 1 and int(hits.sum()) > 1 else ""
    return Finding(
        fault="routes of another response",
        evidence=f"the routes of {int(hits.sum())} of {len(hits)} responses agree with the trainer's of another one{steps}",
        questions=(
            "Are routes and tokens sorted or balanced over ranks together?",
            "By which key are routes joined to responses?",
        ),
        place=first(hits),
    )


def label_sums(chunk: Chunk) -> Sums:
    """How often expert a of the rollout meets expert b of the trainer at a token, `[m, E, E]`."""
    assert chunk.routes is not None
    assert chunk.routes_old is not None
    place, layers = inner(chunk, TOKENS), spread_layers(chunk.routes.shape[2], LAYERS)
    a, b = (x.flatten(0, 1)[place][:, layers].long() for x in (chunk.routes, chunk.routes_old))
    valid = (a >= 0).all(-1) & (b >= 0).all(-1) & (a < EXPERTS).all(-1) & (b < EXPERTS).all(-1)
    met = []
    for m in range(len(layers)):
        here = valid[:, m]
        pairs = a[here, m][:, :, None] * EXPERTS + b[here, m][:, None, :]
        met.append(torch.bincount(pairs.flatten(), minlength=EXPERTS**2).reshape(EXPERTS, EXPERTS))
    return {"met": torch.stack(met), "tokens": valid.sum(0), "layers": layers * 0 + 1, "k": valid.sum(0) * a.shape[-1]}


def judge_labels(sums: Sums, known: Known) -> Finding | None:
    """Most experts of a layer meet one other expert far more often than themselves."""
    met, tokens = sums["met"].double(), sums["tokens"].double()
    k = float(sums["k"].sum()) / max(float(tokens.sum()), 1.0)
    moved, seen = [], []
    for counts in (met, met.transpose(1, 2)):  # one name may stand for several experts on either side
        n, other = counts.sum(-1) / max(k, 1.0), counts.sum(-2) / max(k, 1.0)
        own = counts.diagonal(dim1=1, dim2=2)
        best, at = counts.max(-1)
        chance = other.gather(-1, at) / tokens[:, None].clamp(min=1.0)
        sure = tails(best, n, chance) < math.log(LEVEL / EXPERTS)
        moved.append((sure & (best > 2 * own)).sum(-1))
        seen.append((sure | (own > best / 2)).logical_and(n > 0).sum(-1))
    share = torch.stack([m / s.clamp(min=1) for m, s in zip(moved, seen, strict=True)]).amax(0)
    enough = torch.stack(seen).amax(0) >= 2
    if not bool(((share > RELABELLED) & enough).any()):
        return None
    layer = int(torch.where(enough, share, 0.0).argmax())
    return Finding(
        fault="physical expert ids",
        evidence=f"in {int(((share > RELABELLED) & enough).sum())} of {len(share)} layers looked at, experts of the rollout "
        f"are experts of the trainer under other ids: {float(share[layer]):.0%} of them in one layer, over "
        f"{int(tokens[layer])} tokens",
        questions=(
            "Is expert-parallel load balancing on, so that ids are places of weights rather than experts?",
            "Which map from physical to logical experts held when these tokens were sampled?",
        ),
    )


def token_sums(chunk: Chunk) -> Sums:
    """How far rows of equal tokens agree in early layers, at row t's token t + s but not at t, and the other way round.

    Each pair is a token and the next of the same id; n, Σ x, Σ x² of the share x of experts that they have in common.
    """
    place = inner(chunk, PAIRED)
    tokens = chunk.tokens.flatten()
    at = {s: tokens[place + s] for s in (0, *MOVES)}
    sums: Sums = {}
    for side, name in SIDES.items():
        if (ids := getattr(chunk, name)) is None:
            continue
        rows = ids.flatten(0, 1)[place][:, :EARLY]
        for s in MOVES:
            sums[f"{side} {s:+d}"] = _agreement(rows, at[s], at[0])
            sums[f"{side} {s:+d} own"] = _agreement(rows, at[0], at[s])
    return sums


def _agreement(rows: Tensor, equal: Tensor, unequal: Tensor) -> Tensor:
    """n, Σ x, Σ x² over neighbours in the order of `equal` that have it in common and `unequal` not, `[3]`."""
    order = equal.argsort(stable=True)
    p, q = order[:-1], order[1:]
    pair = (equal[p] == equal[q]) & (unequal[p] != unequal[q])
    p, q = p[pair], q[pair]
    x = shared(rows[p], rows[q]).double().mean(-1) / rows.shape[-1]
    return torch.stack([torch.tensor(float(len(x)), dtype=torch.float64), x.sum(), x.square().sum()])


def judge_own(sums: Sums, known: Known) -> Finding | None:
    """Rows agree better where a neighbouring token is the same."""
    for side in SIDES:
        for s in MOVES if f"{side} +1" in sums else ():
            there, own = _mean(sums[f"{side} {s:+d}"]), _mean(sums[f"{side} {s:+d} own"])
            if min(there[0], own[0]) < FEWEST_PAIRS:
                continue
            z = (there[1] - own[1]) / math.sqrt(DEPENDENCE * (there[2] + own[2]) + 1e-12)
            if z > Z:
                return Finding(
                    fault="routes off by one against the tokens",
                    evidence=f"rows of the {side} share {there[1]:.0%} of their experts in the first layers where token "
                    f"t {s:+d} is the same ({there[0]:.0f} pairs) and {own[1]:.0%} where token t is ({own[0]:.0f} pairs): "
                    f"row t holds the routing of token t {s:+d}",
                    questions=(
                        "Does row t hold the routing of token t, or that which produced token t?",
                        "Does the trainer read the rows the same way?",
                    ),
                )
    return None


def _mean(moments: Tensor) -> tuple[float, float, float]:
    """n, mean, and squared standard error of the mean with the spread of a share added where all are alike."""
    n, total, square = moments.tolist()
    mean = total / max(n, 1.0)
    return n, mean, (max(square / max(n, 1.0) - mean**2, 0.0) + 1.0 / max(n, 1.0)) / max(n, 1.0)


DETECTORS = (
    Detector(
        fault="routes off by one",
        stage=2,
        needs=BOTH,
        measure=order_sums,
        judge=judge_tokens,
        rule=f"a sign test of shared experts moved by one token against as they stand, in {LAYERS} layers and up to {TOKENS} "
        f"tokens of a chunk: z > {Z:g} over all, or {Z_CHOSEN:g} in a response by itself",
    ),
    Detector(
        fault="routes off by one against the tokens",
        stage=2,
        needs=("routes",),
        measure=token_sums,
        judge=judge_own,
        rule=f"rows of the first {EARLY} layers agree more between equal neighbouring tokens than between equal own tokens, "
        f"z > {Z:g}, from {FEWEST_PAIRS} pairs of each",
    ),
    Detector(
        fault="layers off by one",
        stage=2,
        needs=BOTH,
        measure=order_sums,
        judge=judge_layers,
        rule=f"a sign test of shared experts against the next layer's, up to {LAYERED} tokens of a chunk, z > {Z:g}",
    ),
    Detector(
        fault="routes of another response",
        stage=2,
        needs=BOTH,
        measure=order_sums,
        judge=judge_strangers,
        rule=f"among {RESPONSES} responses read together, by their first {ROWS} tokens: a sign test favours another "
        f"response's routes (z > {Z_CHOSEN:g}), which share half as many experts again as the median one's",
    ),
    Detector(
        fault="physical expert ids",
        stage=4,
        needs=BOTH,
        measure=label_sums,
        judge=judge_labels,
        rule=f"more than {RELABELLED:.0%} of the experts of a layer meet one other id on the other side twice as often as "
        f"their own and more often than chance (Chernoff bound {LEVEL:g} / {EXPERTS})",
    ),
)
