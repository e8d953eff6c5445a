"""Clean dumps of two engines that sample one policy: text by Zipf's law, uncertain tokens among certain ones, routes
that depend on the token first and on the context more with every layer."""

from dataclasses import replace

import torch

from firstorder.core.formats.sample import Sample

VOCAB, CANDIDATES = 211, 12


def clean(
    seed=0,
    responses=8,
    length=120,
    spread=0.05,
    sharp=4.0,
    layers=4,
    experts=16,
    top_k=4,
    steps=2,
    loop=0,
    routed=True,
    dense=0,
    offset=0.0,
    slope=1.0,
    saw=False,
):
    """Samples of `length` response tokens on average.

    `spread` is the standard deviation of the noise that each engine puts on every logit, about the root of the KL;
    `sharp` that of the logits, 1 nearly uniform and 12 nearly deterministic; `loop` the period of repeated text;
    `offset` is log S of a truncation that one engine leaves out, `slope` its inverse temperature, and with `saw` tokens
    become surer one after the other, as those of a word do.
    """
    g = torch.Generator().manual_seed(seed)
    embedding = torch.randn(VOCAB, layers, experts, generator=g)
    made = [one(g, i, responses, length, spread, sharp, steps, loop, offset, slope, saw) for i in range(responses)]
    return [
        sample if not routed else with_routes(g, sample, embedding, layers, experts, top_k, spread, dense)
        for sample in made
    ]


def one(g, i, responses, length, spread, sharp, steps, loop, offset, slope, saw):
    prompt = int(torch.randint(2, 12, (), generator=g))
    response = max(1, int(length * (0.5 + torch.rand((), generator=g))))
    total = prompt + response
    mask = torch.arange(total) >= prompt
    if i % 4 == 3 and response > 12:
        mask[prompt + 4 : prompt + 9] = False
    source = torch.arange(total) % loop if loop else torch.arange(total)
    scale = sharp * torch.randn(total, 1, generator=g).mul(0.7).exp()
    scale = scale * (2.0 ** (torch.arange(total) % 5))[:, None] if saw else scale
    logits = (scale * torch.randn(total, CANDIDATES, generator=g))[source].double()
    mu, old = (
        (a * (logits + spread * torch.randn(total, CANDIDATES, generator=g))).log_softmax(-1) for a in (1.0, slope)
    )
    chosen = torch.multinomial(mu.exp(), 1, generator=g)
    weight = 1.0 / torch.arange(2, VOCAB + 2)
    tokens = torch.multinomial(weight, total, replacement=True, generator=g)[source]
    step = i * steps // responses
    reward = float(torch.rand((), generator=g) < 0.5)
    off = ~mask
    return Sample(
        source=f"clean step {step} row {i}",
        step=step,
        tokens=tokens,
        mask=mask,
        logp_mu=mu.gather(-1, chosen)[:, 0].float().double().masked_fill(off, 0.0),
        logp_old=(old.gather(-1, chosen)[:, 0] - offset).float().double().masked_fill(off, 0.0),
        entropy=(-(old.exp() * old).sum(-1)).float().double().masked_fill(off, 0.0),
        advantage=torch.where(mask, reward - 0.4, 0.0).double(),
        version=torch.full((total,), step),
        reward=reward,
        group=i // 4,
    )


def with_routes(g, sample, embedding, layers, experts, top_k, spread, dense):
    total = len(sample.tokens)
    context = torch.randn(total, layers, experts, generator=g)
    deep = torch.linspace(0.2, 0.8, layers)[:, None]
    logits = (1 - deep) * embedding[sample.tokens] + deep * context
    mu, old = (
        (logits + 0.5 * spread * torch.randn(total, layers, experts, generator=g)).topk(top_k).indices.to(torch.int16)
        for _ in range(2)
    )
    for ids in (mu, old):
        ids[:, :dense] = 0
        ids[-1] = -1
    return replace(sample, routes=mu, routes_old=old)
