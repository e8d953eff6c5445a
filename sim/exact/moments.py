"""E‖Σ_t ...‖² of vectors that are sums over the tokens of a response, by recursion over a graph.

The update of a response is Σ_t w_t ∇ log π(e_t) with a weight that is a function of the edge, times products over the
tokens before and after it. With b and h the factors that a token gives to those after and before it, and x_e the
scores of `scores.directions`,

    G_t = w_t x_t H_{t+1} + b_t G_{t+1},      H_t = h_t H_{t+1}

so that three expectations, made backwards, are all that it takes (one number, D numbers and one number a context):

    E[H²]  = Σ_a μ h² E[H²]'
    E[G H] = Σ_a μ (w h x E[H²]' + b h E[G H]')
    E‖G‖²  = Σ_a μ (w² ‖x‖² E[H²]' + 2 w b ⟨x, E[G H]'⟩ + b² E‖G‖²')          ' at follow(c, a)

Shapes: C columns, S contexts, V vocabulary, U distinct places that a context's tokens lead to, D directions, T horizon.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .graph import Graph


@dataclass(frozen=True, kw_only=True)
class Factors:
    """μ times second moments of a token's factors, each the mean over readings, `[C, S, V]`: `hh` of h², `bh` of b h,
    `bb` of b², `wh` of w h, `wb` of w b, `ww` of w²."""

    hh: Tensor
    bh: Tensor
    bb: Tensor
    wh: Tensor
    wb: Tensor
    ww: Tensor


def second_moment(world: Graph, factors: Factors, x: Tensor, worth: Tensor, by_length: Tensor | None = None) -> Tensor:
    """Σ_y ‖G(y)‖² worth(x, R(y)) f(|y|)² over the responses to each prompt, by their probability, `[C, X]`.

    Args:
        world: whose prompts share no context.
        factors: of the tokens.
        x: `[S, V, D]`, the scores.
        worth: `[C, n, X]`, of the n reward levels of each prompt.
        by_length: f, `[T + 1]`; None is 1.
    """
    branches, owner, level, size = world.branches, world.owner, world.table.level, world.contexts
    assert owner is not None
    place, inside = branches.place, branches.place < size
    to, hot = place.clamp(max=size - 1), one_hot(branches.which, place.shape[1]).double()
    hh, ww = (branches.collapse(k) for k in (factors.hh, factors.ww * x.square().sum(-1)))
    bh, bb = (torch.where(inside, branches.collapse(k), 0.0) for k in (factors.bh, factors.bb))
    wh, wb = (torch.einsum("csv,svd,svu->csud", k, x, hot) for k in (factors.wh, 2 * factors.wb))
    wb = torch.where(inside[..., None], wb, 0.0)
    f = torch.ones(world.horizon + 1) if by_length is None else by_length.square()
    ended = torch.where(inside, 0.0, worth[:, level[place], owner[:, None]])
    one = worth[:, level[:size], owner] * f[-1]
    both, two = torch.zeros(*one.shape, x.shape[-1], dtype=torch.float64), torch.zeros_like(one)
    for t in range(world.horizon, 0, -1):
        ahead, along = torch.where(inside, one[:, to], f[t] * ended), both[:, to]
        two = (ww * ahead).sum(-1) + (wb * along).sum((-1, -2)) + (bb * two[:, to]).sum(-1)
        both = (wh * ahead[..., None]).sum(-2) + (bh[..., None] * along).sum(-2)
        one = (hh * ahead).sum(-1)
    return two[:, world.table.start]
