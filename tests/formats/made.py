"""Samples made up for tests of the readers: several turns, two engines that nearly agree, routes of both."""

import torch

from firstorder.core.formats.sample import Sample

VOCAB, EXPERTS = 97, 8


def made(seed=0, count=6, layers=3, top_k=2, steps=2, prompts=2, longest=40, experts=EXPERTS, spread=0.05):
    """`count` samples of each of `steps` steps; responses of one to three turns, the last token sampled.

    Log-probs are float32 numbers, so that every format holds them to the last digit.
    """
    g = torch.Generator().manual_seed(seed)
    return [
        one(g, step, i, layers, top_k, prompts, longest, experts, spread) for step in range(steps) for i in range(count)
    ]


def one(g, step, i, layers, top_k, prompts, longest, experts, spread):
    prompt = int(torch.randint(1, 6, (), generator=g))
    response = int(torch.randint(2, longest, (), generator=g))
    length = prompt + response
    mask = torch.arange(length) >= prompt
    if i % 3 == 2 and response > 8:  # an answer of the environment in the middle
        mask[prompt + 3 : prompt + 6] = False
    mu = torch.where(mask, -torch.rand(length, generator=g).mul(3).square() - 1e-3, 0.0)
    old = torch.where(mask, (mu + spread * torch.randn(length, generator=g)).clamp(max=-1e-4), 0.0)
    ids = torch.rand(length, layers, experts, generator=g).topk(top_k).indices.to(torch.int16)
    ids[-1] = -1
    other = torch.rand(length, layers, experts, generator=g).topk(top_k).indices.to(torch.int16)
    flipped = torch.rand(length, layers, 1, generator=g) < 0.1
    return Sample(
        source=f"made step {step} sample {i}",
        step=step,
        tokens=torch.randint(0, VOCAB, (length,), generator=g),
        mask=mask,
        logp_mu=mu.float().double(),
        logp_old=old.float().double(),
        entropy=torch.where(mask, torch.rand(length, generator=g), 0.0).float().double(),
        advantage=torch.where(mask, float(i % 2) - 0.5, 0.0).double(),
        version=torch.full((length,), step),
        routes=ids,
        routes_old=torch.where(flipped & (ids >= 0), other, ids),
        reward=float(i % 2),
        group=step * prompts + i % prompts,
    )
