"""Whether one expert has other weights in the two engines: |D| is large wherever it is used, and only there.

Shapes: B responses, L positions, M MoE layers, K experts a token, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstorder.core.formats.chunk import Chunk

from .clusters import FEW, normal_score, sized
from .finding import Detector, Finding, Known, Sums

MORE = 4.0  # times as large per 1 - p as at the tokens without it: those that flip often reach 3
SURE = 6.0  # standard deviations, clustered by response: 1e-9, for there may be thousands of experts
LEAST = 100  # tokens of an expert, and without it
EXPERTS = 1024  # of a layer that are told apart, twice as many as published models have
AT_ONCE = 1 << 22  # numbers of responses, layers and experts that are held at once


def _terms(chunk: Chunk) -> Sums:
    """By layer and expert `[M, E]`: sums over the tokens that it made, and over responses the products of their sums."""
    assert chunk.routes is not None
    ids = chunk.routes[:, :-1]
    size, scale = (x[:, 1:] for x in sized(chunk))
    known = (chunk.usable[:, 1:] & ((ids >= 0) & (ids < EXPERTS)).all(-1).all(-1)).double()
    size, scale = size * known, scale * known
    layers, most = ids.shape[2], max(1, AT_ONCE // (ids.shape[2] * EXPERTS))
    names = ("a", "b", "aa", "ab", "bb", "n", "in")
    sums = {name: torch.zeros(layers, EXPERTS, dtype=torch.float64) for name in names}
    for rows in torch.arange(len(ids)).split(most):
        a, b, n = (_by_expert(x[rows], ids[rows]) for x in (size, scale, known))
        for name, x in zip(names, (a, b, a * a, a * b, b * b, n, (n > 0).double()), strict=True):
            sums[name] += x.sum(0)
    return sums | {"size": size.sum(), "scale": scale.sum(), "tokens": known.sum(), "clusters": known.any(-1).sum()}


def _by_expert(x: Tensor, ids: Tensor) -> Tensor:
    """Sums of `[B, L]` over the tokens that each expert of each layer made, `[B, M, E]`."""
    count, _, layers, top = ids.shape
    place = ids.clamp(0, EXPERTS - 1).long().permute(0, 2, 1, 3).flatten(2)  # [B, M, L K]
    values = x[:, None, :, None].expand(-1, layers, -1, top).flatten(2)
    return torch.zeros(count, layers, EXPERTS, dtype=torch.float64).scatter_add_(2, place, values)


def _corrupt(sums: Sums, known: Known) -> Finding | None:
    if int(sums["clusters"]) < FEW or float(sums["tokens"]) == 0:
        return None
    a, b, n = sums["a"], sums["b"], sums["n"]
    own = a / b.clamp(min=1e-300)
    rest = (sums["size"] - a) / (sums["scale"] - b).clamp(min=1e-300)
    spread = (sums["aa"] - 2 * own * sums["ab"] + own.square() * sums["bb"]).clamp(min=0.0).sqrt()
    gap = a - MORE * rest * b
    enough = (n >= LEAST) & (sums["tokens"] - n >= LEAST) & (b > 0) & (rest > 0) & (gap > 0) & (spread > 0)
    sigmas = torch.where(enough, gap / spread.clamp(min=1e-300), 0.0)
    for layer, expert in enough.nonzero().tolist():
        sigmas[layer, expert] = normal_score(float(sigmas[layer, expert]), int(sums["in"][layer, expert]))
    ratio = torch.where(sigmas >= SURE, own / rest.clamp(min=1e-300), 0.0)
    best = int(ratio.argmax())
    layer, expert = divmod(best, ratio.shape[1])
    if float(ratio[layer, expert]) < MORE:
        return None
    return Finding(
        fault="corrupt expert",
        evidence=f"|D| is {float(ratio[layer, expert]):.1f} times as large (per 1 - p) at the tokens made by expert "
        f"{expert} of MoE layer {layer} as at the others, {float(sigmas[layer, expert]):.0f} standard deviations above "
        f"{MORE:g} times: it has not the same weights in both engines.",
        questions=(
            "do checksums of this expert's tensors agree between the trainer and the rollout engine?",
            "is it one expert of a fused or sharded tensor that the weight sync copies in the wrong order?",
        ),
    )


CORRUPT = Detector(
    fault="corrupt expert",
    stage=5,
    needs=("logp_mu", "logp_old", "routes"),
    measure=_terms,
    judge=_corrupt,
    rule=f"the sum of |D| over that of 1 - p, at the tokens that an expert made, is {MORE:g} times that at the others by "
    f"{SURE:g} standard deviations clustered by response; {LEAST} tokens with it and without",
)
