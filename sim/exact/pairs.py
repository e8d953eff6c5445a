"""How often two edges are met in one response: what the variance of every update by edge is made of.

The gradient of a response is g = Σ_t a w(e_t) ∇ log π(e_t), so that with the Gram matrix of the scores, K, and the
second moment of the times that each edge is taken in responses of reward level n, M_n,

    E‖g‖² = Σ_n Σ_s E[a_s² | n] Σ_{e,e'} w_s(e) w_s(e') K(e, e') M_n(e, e')

M_n hangs on μ alone: it is made once, whatever the recipe and however stale. It is a sum over three stretches of time,

    M_n(e, e') for e before e' = Σ_{i+j+k = T-2} d_1 P^i (c) μ(a|c) · P^j (f(e), c') μ(a'|c') · P^k 1_n (f(e'))

which a power of a triangular matrix of operators holds, so that T steps take log T products.

Shapes: M members, X prompts of n contexts each, V vocabulary, E = n V edges of a prompt, L reward levels, b = M X.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .graph import Graph


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of the responses to each prompt: `chance` `[M, X, L]` of each reward level, and with n_e the times that edge e is
    taken `single` `[M, X, L, E]`, E[1{level} n_e], and `pairs` `[M, X, L, E, E]`, E[1{level} n_e n_e']."""

    chance: Tensor
    single: Tensor
    pairs: Tensor

    def of(self, member: int) -> Moments:
        """Those of one member."""
        cut = slice(member, member + 1)
        return Moments(chance=self.chance[cut], single=self.single[cut], pairs=self.pairs[cut])


def moments(world: Graph, logp: Tensor) -> Moments:
    """The moments under a policy with edge log-probs `[M, S, V]`, of a graph whose prompts share no context, each with
    as many, and whose responses end at the horizon alone."""
    members, contexts, vocab = logp.shape
    prompts, size = world.prompts, contexts // world.prompts
    assert world.owner is not None
    assert world.branches.endings == 0
    follow = (world.table.follow.view(prompts, size, vocab) % size).repeat(members, 1, 1)
    mu = logp.exp().reshape(-1, size, vocab)
    kernel = torch.zeros(len(mu), size, size, dtype=torch.float64).scatter_add_(2, follow, mu)
    start = torch.nn.functional.one_hot(world.table.start % size, size).double().repeat(members, 1)
    cut = torch.nn.functional.one_hot(world.table.level[:contexts], len(world.levels)).double()
    ends = cut.view(prompts, size, -1).repeat(members, 1, 1)
    one, two = _apart(kernel, start, ends, world.horizon)
    edges = follow.flatten(1)  # [b, E]
    of = torch.arange(size).repeat_interleave(vocab)
    block, weight = torch.arange(len(mu))[:, None], mu.flatten(1)
    single = weight[..., None] * one[block, of, edges]
    ahead = two[block[..., None], of[:, None], edges[:, :, None], of, edges[:, None, :]]
    before = weight[:, :, None, None] * weight[:, None, :, None] * ahead
    pairs = (before + before.transpose(1, 2)).permute(0, 3, 1, 2) + torch.diag_embed(single.transpose(1, 2))
    shape = members, prompts, len(world.levels)
    return Moments(
        chance=world.earned(logp.exp()).transpose(1, 2),
        single=single.transpose(1, 2).reshape(*shape, -1),
        pairs=pairs.reshape(*shape, *pairs.shape[-2:]),
    )


def _apart(kernel: Tensor, start: Tensor, ends: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """Σ_{i+k = T-1} d_1 P^i (c) P^k 1_n (c'), `[b, n, n, L]`, and Σ_{i+j+k = T-2} d_1 P^i (c1) P^j (c2, c3)
    P^k 1_n (c4), `[b, n, n, n, n, L]`.

    Of the m-th power of [[P, 1, ·], [·, P, 1], [·, ·, P]], whose parts act on three axes: `first` and `last` are the
    corners' P^m applied to the ends, `left`, `right`, `outer` the entries (1, 2), (2, 3) of it, (1, 3) of it, and
    `both` that of [[P, 1], [·, P]] on the first axis and the last.
    """
    here = torch.eye(kernel.shape[-1], dtype=torch.float64).expand_as(kernel)
    power = kernel
    left = torch.einsum("bi,bjk->bijk", start, here)  # d_1 P^i (c1) P^j (c2, c3), i + j = m - 1
    right = torch.einsum("bjk,bln->bjkln", here, ends)  # P^j (c2, c3) P^k 1_n (c4)
    both = torch.einsum("bi,bln->biln", start, ends)  # d_1 P^i (c1) P^k 1_n (c4)
    outer = torch.zeros(*left.shape, *ends.shape[1:], dtype=torch.float64)
    for bit in f"{horizon:b}"[1:]:
        met = torch.einsum("bijm,bmkln->bijkln", left, right)
        outer = _first(power, outer) + met + _last(power, outer)
        left = _first(power, left) + left @ power[:, None]
        right = torch.einsum("bjm,bmkln->bjkln", power, right) + _last(power, right)
        both = _first(power, both) + _last(power, both)
        power = power @ power
        if bit == "1":
            outer = _last(kernel, outer) + torch.einsum("bijk,bln->bijkln", left, ends)
            right = _last(kernel, right) + torch.einsum("bjk,bln->bjkln", power, ends)
            both = _last(kernel, both) + torch.einsum("bi,bln->biln", _row(start, power), ends)
            left = left @ kernel[:, None] + torch.einsum("bi,bjk->bijk", _row(start, power), here)
            power = power @ kernel
    return both, outer


def _row(start: Tensor, power: Tensor) -> Tensor:
    """d P of a vector `[b, n]`."""
    return (start[:, None] @ power)[:, 0]


def _first(power: Tensor, x: Tensor) -> Tensor:
    """x P along the first place, `[b, n, ...]`."""
    return torch.einsum("bi...,bij->bj...", x, power)


def _last(power: Tensor, x: Tensor) -> Tensor:
    """P x along the last place, `[b, ..., n, L]`."""
    return torch.einsum("bij,b...jn->b...in", power, x)
