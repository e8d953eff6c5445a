"""Chunk: samples side by side, padded at the end, as many as a bound on positions allows.

Shapes: B samples, L positions, M MoE layers, K experts a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core.method.stats import TokenStats

from .sample import PER_TOKEN, ROUTED, Sample

POSITIONS = 1 << 16  # of a chunk, padding included: 48 layers of 8 experts are 50 MB, and twice that with both routes
PADDING = {"tokens": 0, "mask": False, "version": -1, "routes": -1, "routes_old": -1}  # else 0.0


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some samples of a dump. A column that they lack is None; the samples of a chunk have the same ones.

    Args:
        samples: as read.
        tokens, mask, logp_mu, logp_old, entropy, advantage, version: `[B, L]`, see `Sample`.
        routes, routes_old: `[B, L, M, K]`.
        lengths: int64 `[B]`.
        steps: int64 `[B]`.
        rewards: float64 `[B]`.
        groups: int64 `[B]`.
    """

    samples: tuple[Sample, ...]
    tokens: Tensor
    mask: Tensor
    lengths: Tensor
    steps: Tensor
    logp_mu: Tensor | None = None
    logp_old: Tensor | None = None
    entropy: Tensor | None = None
    advantage: Tensor | None = None
    version: Tensor | None = None
    routes: Tensor | None = None
    routes_old: Tensor | None = None
    rewards: Tensor | None = None
    groups: Tensor | None = None

    @property
    def usable(self) -> Tensor:
        """Sampled tokens at which both log-probs are numbers that a log-prob can be, bool `[B, L]`.

        The others are faults, which are counted where faults are looked for; no ratio can be made of them.
        """
        known = self.mask.clone()
        for logp in (self.logp_mu, self.logp_old):
            if logp is not None:
                known &= logp.isfinite() & (logp <= 0)
        known[:, 0] = False  # no token precedes it
        return known

    def column(self, name: str) -> Tensor | None:
        """One of the samples' own `columns`, `[B, L]`; None where they lack it."""
        if any(name not in sample.columns for sample in self.samples):
            return None
        return _padded([sample.columns[name] for sample in self.samples], self.tokens.shape[-1], 0.0)

    def stats(self) -> TokenStats:
        """The usable tokens as weights and diagnostics read them, θ = θ_old; it needs both log-probs.

        Without advantages that of every token is 0.
        """
        assert self.logp_mu is not None
        assert self.logp_old is not None
        usable = self.usable
        mu, old = (torch.where(usable, x, 0.0) for x in (self.logp_mu, self.logp_old))
        advantage = torch.zeros_like(mu) if self.advantage is None else self.advantage
        return TokenStats(
            logp_theta=old,
            logp_old=old,
            logp_mu=mu,
            mask=usable,
            advantage=torch.where(usable & advantage.isfinite(), advantage, 0.0),
            rewards=self.rewards,
        )


def chunks(samples: Iterable[Sample], positions: int = POSITIONS) -> Iterator[Chunk]:
    """Samples in their order, in chunks of at most so many positions, or of one sample that is longer."""
    held: list[Sample] = []
    longest = 0
    for sample in samples:
        longer = max(longest, len(sample.tokens))
        if held and (longer * (len(held) + 1) > positions or _kind(sample) != _kind(held[0])):
            yield pad(held)
            held, longer = [], len(sample.tokens)
        held.append(sample)
        longest = longer
    if held:
        yield pad(held)


def pad(samples: list[Sample]) -> Chunk:
    """Samples that have the same columns as one chunk."""
    length = max(len(sample.tokens) for sample in samples)

    def padded(name: str) -> Tensor | None:
        columns = [getattr(sample, name) for sample in samples]
        return None if any(x is None for x in columns) else _padded(columns, length, PADDING.get(name, 0.0))

    tokens, mask = padded("tokens"), padded("mask")
    assert tokens is not None
    assert mask is not None
    rewards, groups = ([getattr(sample, name) for sample in samples] for name in ("reward", "group"))
    return Chunk(
        samples=tuple(samples),
        tokens=tokens,
        mask=mask,
        lengths=torch.tensor([len(sample.tokens) for sample in samples]),
        steps=torch.tensor([sample.step for sample in samples]),
        rewards=None if None in rewards else torch.tensor(rewards, dtype=torch.float64),
        groups=None if None in groups else torch.tensor(groups),
        **{name: padded(name) for name in (*PER_TOKEN, *ROUTED)},
    )


def _padded(columns: list[Tensor], length: int, fill: float) -> Tensor:
    first = columns[0]
    out = first.new_full((len(columns), length, *first.shape[1:]), fill)
    for row, column in enumerate(columns):
        out[row, : len(column)] = column
    return out


def _kind(sample: Sample) -> tuple[object, ...]:
    """What the samples of a chunk share: the columns they have, and the sizes of their routes."""
    there = tuple(getattr(sample, name) is not None for name in (*PER_TOKEN, "reward", "group"))
    routed = tuple(None if (x := getattr(sample, name)) is None else tuple(x.shape[1:]) for name in ROUTED)
    return *there, *routed, tuple(sample.columns)
