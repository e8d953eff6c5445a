"""Good dumps: two engines that sample one policy, made up like text, to see what an audit makes of nothing wrong.

Token ids follow Zipf's law; sure tokens stand among uncertain ones; a router of an early layer looks at its token and
one of a late layer at its context. What is sampled is what the rollout engine's log-probs say.

Shapes: B responses, L positions, C candidates of a token, M MoE layers, E experts, K experts a token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firstorder.core.formats.sample import Sample

VOCAB, CANDIDATES = 211, 12
EVERY = 4  # one response in so many has an answer of the environment in its middle, and so many answer one prompt
LONGEST = 400  # tokens of a response
ROUTERS = ((4, 16, 4), (6, 32, 4), (8, 64, 8))  # layers, experts, experts a token


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a good dump is of.

    Args:
        responses: B.
        length: of a response, tokens, half as many to half as many again.
        spread: standard deviation of the noise that each engine puts on every logit, about the root of twice the KL.
        sharp: standard deviation of the logits: 1 nearly uniform, 12 nearly deterministic.
        layers, experts, top_k: of the routers.
        dense: layers, from the first, that route nothing and are filled with 0.
        steps: that the responses are of.
        loop: period of text that repeats itself, 0 where it does not.
        saw: tokens become surer one after the other, five times, as those of a word do.
        offset: nats that the trainer gives every token less, as where one engine renormalises and the other not.
        slope: inverse temperature of the trainer.
        routed: with routes.
    """

    responses: int = 8
    length: int = 120
    spread: float = 0.05
    sharp: float = 4.0
    layers: int = 4
    experts: int = 16
    top_k: int = 4
    dense: int = 0
    steps: int = 2
    loop: int = 0
    saw: bool = False
    offset: float = 0.0
    slope: float = 1.0
    routed: bool = True


def experts_of(seed: int) -> int:
    """Experts of a layer of `good`."""
    return ROUTERS[seed % len(ROUTERS)][1]


def good(seed: int, tokens: int) -> list[Sample]:
    """A good dump of about so many tokens, of three responses at least; its kind is chosen by the seed."""
    length = min(max(1, tokens // 3), (60, 150, LONGEST)[seed % 3])
    layers, experts, top_k = ROUTERS[seed % len(ROUTERS)]
    kind = Kind(
        responses=max(3, tokens // length),
        length=length,
        spread=(0.01, 0.05, 0.2, 0.4)[seed // 3 % 4],
        sharp=(1.5, 3.0, 6.0, 12.0)[seed // 5 % 4],
        layers=layers,
        experts=experts,
        top_k=top_k,
        dense=seed // 2 % 2,
        saw=seed % 2 == 1,
    )
    return made(kind, seed)


def made(kind: Kind, seed: int = 0) -> list[Sample]:
    """The responses of a good dump."""
    g = torch.Generator().manual_seed(seed)
    embedding = torch.randn(VOCAB, kind.layers, kind.experts, generator=g)
    samples = [_response(kind, row, g) for row in range(kind.responses)]
    return [_routed(kind, sample, embedding, g) for sample in samples] if kind.routed else samples


def _response(kind: Kind, row: int, g: torch.Generator) -> Sample:
    prompt = int(torch.randint(2, 12, (), generator=g))
    response = max(1, int(kind.length * (0.5 + torch.rand((), generator=g))))
    place = torch.arange(prompt + response)
    mask = place >= prompt
    if row % EVERY == EVERY - 1 and response > 12:
        mask[prompt + 4 : prompt + 9] = False
    source = place % kind.loop if kind.loop else place
    mu, old, tokens = _said(kind, source, g)
    chosen = torch.multinomial(mu.exp(), 1, generator=g)
    step = row * kind.steps // kind.responses
    reward = float(torch.rand((), generator=g) < 0.5)

    def column(x: Tensor) -> Tensor:
        return torch.where(mask, x, 0.0).float().double()

    return Sample(
        source=f"good step {step} row {row}",
        step=step,
        tokens=tokens,
        mask=mask,
        logp_mu=column(mu.gather(-1, chosen)[:, 0]),
        logp_old=column(old.gather(-1, chosen)[:, 0] - kind.offset),
        entropy=column(-(old.exp() * old).sum(-1)),
        advantage=torch.where(mask, reward - 0.4, 0.0).double(),
        version=torch.full((len(place),), step),
        reward=reward,
        group=row // EVERY,
    )


def _said(kind: Kind, source: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """log μ and log π_old of the candidates `[L, C]`, and ids `[L]`; positions of one source share their logits."""
    total = len(source)
    scale = kind.sharp * torch.randn(total, 1, generator=g).mul(0.7).exp()
    if kind.saw:
        scale = scale * (2.0 ** (torch.arange(total) % 5))[:, None]
    logits = (scale * torch.randn(total, CANDIDATES, generator=g))[source].double()
    mu, old = (
        (slope * (logits + kind.spread * torch.randn(total, CANDIDATES, generator=g))).log_softmax(-1)
        for slope in (1.0, kind.slope)
    )
    weight = 1.0 / torch.arange(2, VOCAB + 2)
    return mu, old, torch.multinomial(weight, total, replacement=True, generator=g)[source]


def _routed(kind: Kind, sample: Sample, embedding: Tensor, g: torch.Generator) -> Sample:
    shape = (len(sample.tokens), kind.layers, kind.experts)
    deep = torch.linspace(0.2, 0.8, kind.layers)[:, None]
    scores = (1 - deep) * embedding[sample.tokens] + deep * torch.randn(shape, generator=g)
    mu, old = (
        (scores + 0.5 * kind.spread * torch.randn(shape, generator=g)).topk(kind.top_k).indices.to(torch.int16)
        for _ in range(2)
    )
    for ids in (mu, old):
        ids[:, : kind.dense] = 0
        ids[-1] = -1
    return replace(sample, routes=mu, routes_old=old)
