"""Sums over walks of any length: both recursions over t, for all members at once.

Shapes: M members, S contexts, E endings, U distinct places that a context's tokens lead to, T horizon, n reward levels,
P columns, G = S + E places.

A step looks at places, not at tokens: the tokens of a context that lead to one place are added up first, so that a
step costs S·U whatever the vocabulary is.

    B_{T+1}(c) = f(T) cut(c),     B_t(c) = Σ_u K_u(c) B_{t+1}(place_u(c)),     B_{t+1}(ending) = f(t) worth(ending)
    d_{t+1}(c') = Σ_{place_u(c) = c'} d_t(c) K_u(c)

Time is walked in blocks. The values after each block are kept, those within a block are made again when the forward
pass comes to it: S·sqrt(T) numbers for three recursions, in place of S·T for two. What fits is one block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

Array = NDArray[np.float64]
KEPT = 1 << 24  # float64 numbers of a block of steps
SCALED = 1e100  # a mass outside [1 / SCALED, SCALED] is scaled back
ROUNDING = 1e-12  # of a sum, below which it is 0


@dataclass(frozen=True, kw_only=True)
class Branches:
    """The distinct places that a context's tokens lead to: `place` int64 `[S, U]`, and `which` of them each token leads
    to, int64 `[S, V]`. Contexts with fewer repeat their first."""

    place: Tensor
    which: Tensor
    contexts: int

    def collapse(self, kernel: Tensor) -> Tensor:
        """A kernel `[M, S, V]` added up over the tokens that lead to one place, `[M, S, U]`."""
        total = torch.zeros(*kernel.shape[:2], self.place.shape[1], dtype=torch.float64)
        return total.scatter_add_(2, self.which.expand(kernel.shape), kernel)


def branches(follow: Tensor, contexts: int) -> Branches:
    """The distinct places in every row of `follow`, int64 `[S, V]`."""
    ordered, order = follow.sort(dim=1)
    rank = torch.cat([torch.zeros_like(ordered[:, :1]), (ordered[:, 1:] != ordered[:, :-1]).long()], dim=1).cumsum(1)
    which = torch.empty_like(follow).scatter_(1, order, rank)
    place = ordered[:, :1].expand(-1, int(rank.max()) + 1).clone().scatter_(1, rank, ordered)
    return Branches(place=place, which=which, contexts=contexts)


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A kernel laid out for the recursions.

    Args:
        step: `[M S, M S]`, from contexts to contexts.
        ending: `[M S, E]`, mass that leads to each ending.
        place: int64 `[M S, U]`, which context of the stack each branch leads to; 0 where it is an ending.
        end: int64 `[M S, U]`, which ending; -1 where it is a context.
    """

    step: csr_array
    back: csr_array
    ending: Array
    place: NDArray[np.int64]
    end: NDArray[np.int64]


def walk(kernel: Tensor, where: Branches) -> Walk:
    """Lay out a collapsed kernel `[M, S, U]`."""
    members, size, wide = kernel.shape
    inside = where.place < where.contexts
    offset = (torch.arange(members) * size)[:, None, None]
    column = torch.where(inside, where.place + offset, 0).reshape(-1, wide)
    mass = torch.where(inside, kernel, 0.0)
    ends = torch.where(inside, -1, where.place - where.contexts)
    count = max(int(ends.max()) + 1, 0)
    ending = torch.zeros(members, size, count, dtype=torch.float64)
    for e in range(count):
        ending[..., e] = torch.where(ends == e, kernel, 0.0).sum(-1)
    rows = torch.arange(members * size).repeat_interleave(wide)
    shape = (members * size, members * size)
    step = csr_array((mass.flatten().numpy(), (rows.numpy(), column.flatten().numpy())), shape=shape)
    step.eliminate_zeros()
    return Walk(
        step=step,
        back=csr_array(step.T.tocsr()),
        ending=ending.view(members * size, count).numpy(),
        place=column.numpy(),
        end=ends.repeat(members, 1).numpy(),
    )


@contextmanager
def flushed() -> Iterator[None]:
    """Numbers below the normal range of float64 are 0: arithmetic on them is a hundred times slower."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def blocks(horizon: int, numbers: int) -> list[range]:
    """The steps 1, ..., T in blocks; `numbers` are kept of each step."""
    size = min(horizon, max(math.isqrt(horizon), KEPT // numbers))
    return [range(start, min(start + size, horizon + 1)) for start in range(1, horizon + 1, size)]


def backward(walk: Walk, steps: range, after: Array, worth: Array, f: Array) -> Iterator[Array]:
    """B_t for t from the last of `steps` down to the first, `[M S, P]` each.

    Args:
        walk: the kernel.
        steps: consecutive t.
        after: B of the step after them.
        worth: `[E, P]`, of the endings.
        f: `[T + 1]`, by length.
    """
    gained = walk.ending @ worth
    for t in reversed(steps):
        after = walk.step @ after
        if len(worth):
            after += f[t] * gained
        yield after


def forward(walk: Walk, steps: range, now: Array) -> Iterator[Array]:
    """d_t for t in `steps`, `[M S, P]` each, from that of the first."""
    for t in steps:
        yield now
        if t < steps[-1]:
            now = walk.back @ now


def last(items: Iterator[Array], otherwise: Array) -> Array:
    """The last of an iteration."""
    for item in items:
        otherwise = item
    return otherwise


@dataclass(frozen=True, kw_only=True)
class After:
    """The tokens after an edge: those of `near` for the next `steps` of them, those of `far` from there on.

    The values at `j` steps of `near` stand side by side, `[M S, (steps + 1) n]`, the last n those that an edge meets.
    """

    far: Walk
    near: Walk
    steps: int

    def backward(self, steps: range, after: Array, worth: Array, f: Array) -> Iterator[Array]:
        """As `backward`, of all of them."""
        if not self.steps:
            yield from backward(self.far, steps, after, worth, f)
            return
        n = worth.shape[1]
        far, near = (walk.ending @ worth for walk in (self.far, self.near))
        for t in reversed(steps):
            first = self.far.step @ after[:, :n] + f[t] * far
            after = np.concatenate([first, self.near.step @ after[:, :-n] + f[t] * np.tile(near, self.steps)], axis=1)
            yield after


def through(
    before: Walk, after: After, start: Array, level: list[int], column: list[int], cut: Array, worth: Array, f: Array
) -> Array:
    """Σ_t d_t(c) B_{t+1}(place_u(c)) of every context and branch, `[M S, U, C]`.

    Args:
        before: kernel of the tokens before the branch.
        after: kernel of those after it.
        start: d_1, `[M S, P]`.
        level: of each of P columns, which of n levels its responses earn.
        column: of each of P columns, which of C it is added to.
        cut: `[M S, n]`, 1 where a response that is cut on its way to the context earns the level.
        worth: `[E, n]`, the same of endings.
        f: `[T + 1]`, by length.
    """
    horizon, rows, wide, levels = len(f) - 1, len(start), before.place.shape[1], cut.shape[1]
    parts = blocks(horizon, rows * (cut.shape[1] * (after.steps + 1) + start.shape[1]))
    final = np.tile(cut * f[horizon], after.steps + 1)
    known = [final]
    for steps in reversed(parts[1:]):
        known.append(last(after.backward(steps, known[-1], worth, f), final))
    passed, now = np.zeros((rows, wide, max(column) + 1)), start
    for steps, beyond in zip(parts, reversed(known), strict=True):
        values = np.stack([*reversed([beyond, *after.backward(steps, beyond, worth, f)])])[1:, :, -levels:]
        came = list(forward(before, steps, now))
        now = before.back @ came[-1]
        visits, lengths = np.stack(came), f[steps.start : steps.stop, None]
        for p, (n, c) in enumerate(zip(level, column, strict=True)):
            d, b = np.ascontiguousarray(visits[:, :, p]), np.ascontiguousarray(values[:, :, n])
            ended = (d * lengths).sum(0) if len(worth) else 0.0
            for u in range(wide):
                inside = np.einsum("ts,ts->s", d, b[:, before.place[:, u]])
                end = before.end[:, u]
                passed[:, u, c] += np.where(end < 0, inside, ended * worth[end, n]) if len(worth) else inside
    return passed


def expansion(mass: Tensor, moved: Tensor, where: Branches, rewards: Tensor, horizon: int, order: int) -> Tensor:
    """e_k of every context for k = 0, ..., `order`, `[M, S, order + 1]`.

        E^k_t(c) = Σ_u K_u(c) E^k_{t+1}(place_u) + Q_u(c) E^{k-1}_{t+1}(place_u)

    Q sums to 0 over a context where it is a change of probabilities, so that only differences of next values count:
    they are taken from the first place, before they are multiplied.

    Args:
        mass: K, `[M, S, U]`.
        moved: Q, the same of K times the change.
        where: the places.
        rewards: `[S + E]`, of a cut on the way to a context, and of endings.
        horizon: T.
        order: the largest k.
    """
    members, size, wide = mass.shape
    total = moved.sum(-1)
    total = torch.where(total.abs() <= ROUNDING * moved.abs().sum(-1), 0.0, total)[..., None]
    fixed = np.zeros((members, len(rewards), order + 1))
    fixed[:, :, 0] = rewards.numpy()
    k, q, rest, place = mass.numpy(), moved.numpy(), total.numpy(), where.place.numpy()
    value = fixed.copy()
    for _ in range(horizon):
        origin = value[:, place[:, 0]]
        now = k[:, :, 0, None] * origin
        now[:, :, 1:] += rest * origin[:, :, :-1]
        for u in range(1, wide):
            ahead = value[:, place[:, u]]
            now += k[:, :, u, None] * ahead
            now[:, :, 1:] += q[:, :, u, None] * (ahead - origin)[:, :, :-1]
        value[:, :size] = now
    return torch.from_numpy(value[:, :size])


def squares(mass: Walk, once: Walk, twice: Walk, cut: Array, worth: Array, f: Array) -> Array:
    """Σ K (Σ_t x)² of every context by level, `[M S, n]`, from the walks of K, K x and K x²; as `backward` otherwise."""
    n = cut.shape[1]
    nothing = np.zeros((len(mass.place), n))
    value = np.concatenate([np.tile(cut, (len(nothing) // len(cut), 1)) * f[-1], nothing, nothing], axis=1)
    ends = np.concatenate([walk.ending @ worth for walk in (mass, once, twice)], axis=1)
    for t in range(len(f) - 1, 0, -1):
        crossed, ahead = once.step @ value[:, : 2 * n], twice.step @ value[:, :n]
        value = mass.step @ value
        value[:, n : 2 * n] += crossed[:, :n]
        value[:, 2 * n :] += 2 * crossed[:, n:] + ahead
        if len(worth):
            value += f[t] * ends
    return value[:, 2 * n :]


def log_mass(walk: Walk, start: Array, members: int, horizon: int) -> Tensor:
    """log Σ_y d_1 Π_t K over all responses of each member, `[M]`, whatever its size."""
    size = len(start) // members
    value, ending, scale = np.ones(len(start)), walk.ending.sum(1), np.zeros(members)
    gained = ending.copy()
    for _ in range(horizon):
        value = walk.step @ value + gained
        largest = value.reshape(members, size).max(1)
        if largest.max() > SCALED or largest.min() < 1 / SCALED:
            value = (value.reshape(members, size) / largest[:, None]).ravel()
            scale += np.log(largest)
            gained = (ending.reshape(members, size) * np.exp(-scale)[:, None]).ravel()
    total = (value * start).reshape(members, size).sum(1)
    return torch.from_numpy(np.log(total) + scale)
