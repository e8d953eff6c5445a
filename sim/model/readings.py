"""What an inference engine records of its tokens where that is drawn anew at every token.

Shapes: M members, N contexts, V vocabulary, K draws, `...` any axes.

At each token of each response one of K equally likely draws k is taken, K = `sim.draws`. Either (`numerics.fresh`) the
engine computes with the k-th of its noises, samples from that and records it,

    sampled:  μ̄(a|c) = (1/K) Σ_k μ_k(a|c),      recorded:  log μ_k(a|c),      P(k | c, a) = μ_k(a|c) / (K μ̄(a|c))

or (`sim.reading_noise` = s) it samples as without noise, and reads what it sampled with an error,

    sampled:  μ(a|c),      recorded:  min(log μ(a|c) + s ξ_k, 0),      P(k | c, a) = 1/K

with ξ_k the normal distribution in K equally likely values of mean 0 and variance 1. A log-prob is at most 0, so that a
reading that would be above is 0. K draws make every expectation over them a finite sum, exact for any weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.sim.config import Sim

from . import noise
from .numerics import Arithmetic
from .policy import Model, Weights, load

READINGS = 5  # keeps the random numbers of readings apart from those of tokens


@dataclass(frozen=True, kw_only=True)
class Readings:
    """Every reading of every edge.

    Args:
        logp: `[M, K, N, V]` nats, what is recorded.
        chance: `[M, K, N, V]`, how likely each draw is where the edge was sampled; sums to 1 over K.
        routes: int16 `[M, K, N, L, E]`, the experts of each draw where the engine itself is drawn; else None.
    """

    logp: Tensor
    chance: Tensor
    routes: Tensor | None = None

    @property
    def draws(self) -> int:
        """K."""
        return int(self.logp.shape[1])

    @property
    def sampled(self) -> Tensor:
        """log μ̄ of K engines, `[M, N, V]` nats."""
        return self.logp.logsumexp(1) - math.log(self.draws)

    def flat(self) -> Tensor:
        """What is recorded, `[M, K N V]`."""
        return self.logp.flatten(1)

    def every(self, edges: Tensor) -> Tensor:
        """Values of edges `[M, N V]` once for each draw, `[M, K N V]`."""
        return edges.repeat(1, self.draws)

    def share(self, edges: Tensor) -> Tensor:
        """Values of edges `[M, N V]` split among the draws, as likely as each is, `[M, K N V]`."""
        return self.every(edges) * self.chance.flatten(1)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over draws of values `[M, K N V]`, given the edge, `[M, N, V]`."""
        return (values.view(self.chance.shape) * self.chance).sum(1)

    def taken(self, edge: Tensor, keys: Tensor) -> Tensor:
        """Which draw was taken at each sampled token, int64 `[M, B, T]`.

        Args:
            edge: int64 `[M, B, T]`, context · V + token.
            keys: int64 `[M, B, T]`, the hash key of each token's random number.
        """
        chance = self.chance.transpose(1, 0).flatten(2)  # [K, M, N V]
        u, below = noise.uniform(keys), torch.zeros(edge.shape, dtype=torch.float64)
        taken = torch.zeros(edge.shape, dtype=torch.int64)
        for of_draw in chance[:-1]:
            below = below + of_draw.gather(1, edge.flatten(1)).view(edge.shape)
            taken += u > below
        return taken

    def recorded(self, edge: Tensor, keys: Tensor) -> Tensor:
        """The log-probs recorded at sampled tokens, `[M, B, T]` nats; arguments as of `taken`."""
        size = self.logp[0, 0].numel()
        place = self.taken(edge, keys) * size + edge
        return self.logp.flatten(1).gather(1, place.flatten(1)).view(edge.shape)


def engine(sim: Sim, weights: Weights, mu: Arithmetic) -> Model:
    """The inference engine; where it is drawn at every token, all K of it, those of a member one after the other."""
    if not sim.numerics.drawn:
        return load(weights, mu, sim)
    copies = {name: w.repeat_interleave(sim.draws, dim=0) for name, w in weights.items()}
    return load(copies, mu.each(sim.draws), sim)


def of_engines(logp: Tensor, routes: Tensor) -> Readings:
    """Readings of K engines, `logp` `[M, K, N, V]` and their experts, of which each token is sampled by one."""
    chance = (logp - logp.logsumexp(1, keepdim=True)).exp()
    return Readings(logp=logp, chance=chance, routes=routes)


def of_errors(logp: Tensor, size: float, draws: int) -> Readings:
    """Readings of one engine, `logp` `[M, N, V]`, with errors of `size` nats."""
    every = read(logp[:, None], size, normals(draws)[:, None, None])
    return Readings(logp=every, chance=torch.full_like(every, 1.0 / draws))


def read(logp: Tensor, size: float, error: Tensor) -> Tensor:
    """min(log μ + s ξ, 0), nats."""
    return (logp + size * error).clamp(max=0.0)


def misread(logp: Tensor, size: float, keys: Tensor, draws: int) -> Tensor:
    """What is recorded of sampled tokens `[...]` by one engine, with the hash `keys` of their errors."""
    return read(logp, size, normals(draws)[pick(keys, draws)]) if size else logp


def token_keys(keys: Tensor, length: int) -> Tensor:
    """The hash key of what is drawn at every token of responses with keys `[...]`, `[..., length]`."""
    return noise.combine(noise.combine(keys, READINGS)[..., None], torch.arange(length))


def pick(keys: Tensor, draws: int) -> Tensor:
    """One of so many draws a key, int64."""
    return (noise.uniform(keys) * draws).long()


def normals(count: int) -> Tensor:
    """The standard normal distribution in equally likely values, `[K]`: its quantiles at (k + 1/2)/K, scaled to
    variance 1."""
    values: Tensor = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    return values / values.square().mean().sqrt()
