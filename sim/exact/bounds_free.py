"""Free policies: tables of log-probs over a whole tree of one prompt, with any reward of a response, and their bounds.

Nothing of a network is in them: any two policies, and any R in [0, 1], are such tables. All is differentiable, and sums
keep their digits where the two policies are close.

Shapes: M members, N contexts, V vocabulary, T horizon, Y = V^T responses, all of T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import levels
from .bounds import Apart, Expansion, total_variation
from .bounds_replay import Moved
from .edges import kl
from .levels import Levels


@dataclass(frozen=True, kw_only=True)
class Free:
    """Two policies and a reward.

    Args:
        shape: the tree, from `full`.
        pi, mu: log-probs, `[M, N, V]`.
        rewards: `[M, Y]`, of every response, in [0, 1].
    """

    shape: Levels
    pi: Tensor
    mu: Tensor
    rewards: Tensor

    @property
    def horizon(self) -> int:
        """T."""
        return len(self.shape.widths)

    @property
    def worth(self) -> Tensor:
        """The rewards on the edges of the last level, 0 elsewhere, `[M, 1, N, V]`."""
        last = self.rewards.view(len(self.rewards), -1, self.pi.shape[-1])
        return torch.nn.functional.pad(last, (0, 0, self.pi.shape[1] - last.shape[1], 0))[:, None]


def full(vocab: int, horizon: int) -> Levels:
    """The tree of one prompt in which every response has `horizon` tokens."""
    widths = tuple(vocab**depth for depth in range(horizon))
    terminal = torch.full((sum(widths), vocab), -1, dtype=torch.int64)
    terminal[-widths[-1] :] = 0
    return Levels(widths=widths, first=0, terminal=terminal, prompt=torch.zeros(sum(widths), dtype=torch.int64))


def worths(of: Free) -> tuple[Tensor, Tensor]:
    """Q^μ and Q^π - Q^μ of every edge, `[M, N, V]`; the second by its own recursion:

    (Q^π - Q^μ)(c, a) = Σ_b (π - μ)(b|c a) Q^μ(c a, b) + π(b|c a) (Q^π - Q^μ)(c a, b)
    """
    known = levels.ahead(of.shape, of.mu.exp(), of.worth)[0]
    found: list[Tensor] = [torch.zeros_like(known[-1][:, 0])]
    parts = (of.shape.split(x) for x in (of.pi.exp(), of.pi.exp() - of.mu.exp()))
    steps = list(zip(*parts, (q[:, 0] for q in known), strict=True))
    for pi, change, q in reversed(steps[1:]):
        moved = (change * q + pi * found[-1]).sum(-1)
        found.append(moved.view(len(moved), -1, of.pi.shape[-1]))
    return torch.cat(known, dim=2)[:, 0], torch.cat(found[::-1], dim=1)


def error(of: Free) -> Tensor:
    """J(π) - J(μ) - E_μ[R Σ_t (ρ_t - 1)] = Σ_c d^μ(c) Σ_a (π - μ)(a|c) (Q^π - Q^μ)(c, a), `[M]`."""
    reached = torch.cat(levels.came(of.shape, of.mu.exp()), dim=1)
    return (reached[..., None] * (of.pi.exp() - of.mu.exp()) * worths(of)[1]).sum((-2, -1))


def gap(of: Free) -> Tensor:
    """J(π) - J(μ), `[M]`."""
    q, moved = (x[:, 0] for x in worths(of))
    return ((of.pi.exp() - of.mu.exp())[:, 0] * q + of.pi.exp()[:, 0] * moved).sum(-1)


def expansion(of: Free) -> Expansion:
    """What bounds on `error` read."""
    q, _ = worths(of)
    advantage = q - (of.mu.exp() * q).sum(-1, keepdim=True)
    change = of.pi.exp() - of.mu.exp()
    drift = (change * q).sum(-1)
    reached = torch.cat(levels.came(of.shape, of.mu.exp()), dim=1)
    return Expansion(
        apart=apart(of.mu, of.pi, of.shape),
        advantage=advantage.abs().amax((-2, -1)),
        drift=drift.abs().amax(-1),
        start=(of.mu.exp()[:, 0] * q[:, 0]).sum(-1),
        slope=(reached * drift).sum(-1),
    )


def moved(of: Free) -> Moved:
    """What bounds on `gap` read, π in the place of the natural target and μ in that of the replayed one."""
    met = torch.cat(levels.came(of.shape, (0.5 * (of.pi + of.mu)).exp()), dim=1)
    roots = ((0.5 * of.pi).exp() - (0.5 * of.mu).exp()).square().sum(-1)
    return Moved(
        natural=apart(of.pi, of.mu, of.shape),
        replayed=apart(of.mu, of.pi, of.shape),
        hellinger=0.5 * (met * roots).sum(-1),
    )


def apart(p: Tensor, q: Tensor, shape: Levels) -> Apart:
    """How far apart two tables are."""
    tv, divergence = total_variation(p, q), kl(p, q)
    came = levels.came(shape, p.exp())
    by_step = (
        torch.stack([(d * part).sum(-1) for d, part in zip(came, shape.split(x, -1), strict=True)], dim=-1)
        for x in (tv, divergence)
    )
    mean_tv, mean_kl = by_step
    return Apart(horizon=len(shape.widths), most_tv=tv.amax(-1), most_kl=divergence.amax(-1), tv=mean_tv, kl=mean_kl)


def sequence_total_variation(of: Free) -> Tensor:
    """TV over whole responses, `[M]`."""
    first, second = (_said(of.shape, logp.exp()) for logp in (of.pi, of.mu))
    return 0.5 * (first - second).abs().sum(-1)


def _said(shape: Levels, kernel: Tensor) -> Tensor:
    """How likely every response is, `[M, Y]`."""
    return (levels.came(shape, kernel)[-1][..., None] * shape.split(kernel)[-1]).flatten(1)
