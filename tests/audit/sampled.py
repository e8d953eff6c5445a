"""Responses of two engines whose distributions are known: random logits, sampled from one engine, scored by both."""

import torch

from firstorder.core.audit.finding import Known, merged
from firstorder.core.formats.chunk import chunks
from firstorder.core.formats.sample import Sample

VOCAB, EXPERTS = 32, 8


def responses(seed=0, count=40, length=100, spread=2.0, noise=0.02, sampled=None, recorded=None, flipped=None):
    """Samples. `sampled` and `recorded` make of the rollout engine's log-probs `[B, T, V]` those that tokens are drawn
    from and those that are written; `flipped` is the share of tokens of which the two routers disagree."""
    g = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(count, length, VOCAB, generator=g, dtype=torch.float64)
    other = noise * torch.randn(logits.shape, generator=g, dtype=torch.float64)
    old, mu = logits.log_softmax(-1), (logits + other).log_softmax(-1)
    drawn_from = mu if sampled is None else sampled(mu)
    written = drawn_from if recorded is None else recorded(mu)
    tokens = torch.multinomial(drawn_from.exp().flatten(0, 1), 1, generator=g).view(count, length, 1)
    moved = torch.rand(count, length, 1, 1, generator=g) < (flipped or 0.0)
    columns = {
        "logp_mu": written.gather(-1, tokens)[..., 0],
        "logp_old": old.gather(-1, tokens)[..., 0],
        "entropy": -(old.exp() * old).sum(-1),
    }
    ids = torch.rand(count, length, 2, EXPERTS, generator=g).topk(2).indices.to(torch.int16)
    routes = {"routes": ids, "routes_old": torch.where(moved, (ids + 1) % EXPERTS, ids)}
    return [_sample(i, tokens[i, :, 0], {k: x[i] for k, x in columns.items()}, routes) for i in range(count)]


def _sample(i, tokens, columns, routes):
    nothing = torch.zeros(1, dtype=torch.float64)
    last = torch.full((1, 2, 2), -1, dtype=torch.int16)
    return Sample(
        source=f"response {i}",
        step=3,
        tokens=torch.cat([torch.tensor([1]), tokens]),
        mask=torch.arange(len(tokens) + 1) > 0,
        version=torch.full((len(tokens) + 1,), 3),
        **{name: torch.cat([nothing, x]).float().double() for name, x in columns.items()},
        **{name: torch.cat([x[i], last]) for name, x in routes.items()},
    )


def judged(detector, samples, known=None, positions=1 << 12):
    """What a detector finds in samples that are read in several chunks."""
    sums = {}
    for chunk in chunks(samples, positions):
        assert detector.applies(chunk)
        sums = merged(sums, detector.measure(chunk))
    return detector.judge(sums, known or Known())
