"""Sums over walks of any length: both recursions over t, for all members at once.

Shapes: M members, S contexts, E endings, U distinct places that a context's tokens lead to, T horizon, n reward levels,
P columns, G = S + E places, R = M S rows.

A step looks at places, not at tokens: the tokens of a context that lead to one place are added up first, so that a
step costs S·U whatever the vocabulary is.

    B_{T+1}(c) = f(T) cut(c),     B_t(c) = Σ_u K_u(c) B_{t+1}(place_u(c)),     B_{t+1}(ending) = f(t) worth(ending)
    d_{t+1}(c') = Σ_{place_u(c) = c'} d_t(c) K_u(c)

Time is walked in blocks. The values after each block are kept, those within a block are made again when the forward
pass comes to it: S·sqrt(T) numbers for three recursions, in place of S·T for two. What fits is one block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Array = NDArray[np.float64]
KEPT = 1 << 24  # float64 numbers of a block of steps
CACHED = 1 << 16  # float64 numbers that stay in a processor's cache
SCALED = 1e100  # a mass outside [1 / SCALED, SCALED] is scaled back
ROUNDING = 1e-12  # of a sum, below which it is 0


@dataclass(frozen=True, kw_only=True)
class Branches:
    """The distinct places that a context's tokens lead to: `place` int64 `[S, U]`, and `which` of them each token leads
    to, int64 `[S, V]`; S and E. Contexts with fewer repeat their first."""

    place: Tensor
    which: Tensor
    contexts: int
    endings: int

    def collapse(self, kernel: Tensor) -> Tensor:
        """A kernel `[M, S, V]` added up over the tokens that lead to one place, `[M, S, U]`."""
        total = torch.zeros(*kernel.shape[:2], self.place.shape[1], dtype=torch.float64)
        return total.scatter_add_(2, self.which.expand(kernel.shape), kernel)


def branches(follow: Tensor, contexts: int, endings: int) -> Branches:
    """The distinct places in every row of `follow`, int64 `[S, V]`."""
    ordered, order = follow.sort(dim=1)
    rank = torch.cat([torch.zeros_like(ordered[:, :1]), (ordered[:, 1:] != ordered[:, :-1]).long()], dim=1).cumsum(1)
    which = torch.empty_like(follow).scatter_(1, order, rank)
    place = ordered[:, :1].expand(-1, int(rank.max()) + 1).clone().scatter_(1, rank, ordered)
    return Branches(place=place, which=which, contexts=contexts, endings=endings)


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A kernel laid out for the recursions, R = M S rows.

    Args:
        mass: K of each branch, `[R, U]`, 0 where it is an ending.
        ending: `[R, E]`, mass that leads to each ending.
        place: int32 `[R, U]`, which row each branch leads to; 0 where it is an ending.
        end: int64 `[R, U]`, which ending; -1 where it is a context.
    """

    mass: Array
    ending: Array
    place: NDArray[np.int32]
    end: NDArray[np.int64]

    def step(self, columns: int = 1) -> csr_array:
        """From rows to rows, `[P R, P R]`: P columns stand apart, since a sparse matrix is twice as fast on one long
        vector as on several side by side."""
        return stacked([(self, column) for column in range(columns)])

    def gained(self, worth: Array) -> Array:
        """Σ_e K(e) worth of every row, `[P R]`, for the worth `[P, R, E]` of its endings."""
        gained: Array = np.einsum("re,pre->pr", self.ending, worth).ravel()
        return gained


def walk(kernel: Tensor, where: Branches) -> Walk:
    """Lay out a collapsed kernel `[M, S, U]`."""
    members, size, wide = kernel.shape
    inside = where.place < where.contexts
    offset = (torch.arange(members) * size)[:, None, None]
    ends = torch.where(inside, -1, where.place - where.contexts)
    ending = torch.zeros(members, size, where.endings, dtype=torch.float64)
    for e in range(where.endings):
        ending[..., e] = torch.where(ends == e, kernel, 0.0).sum(-1)
    return Walk(
        mass=torch.where(inside, kernel, 0.0).view(-1, wide).numpy(),
        ending=ending.view(members * size, where.endings).numpy(),
        place=torch.where(inside, where.place + offset, 0).view(-1, wide).int().numpy(),
        end=ends.repeat(members, 1).numpy(),
    )


def stacked(parts: Sequence[tuple[Walk, int]]) -> csr_array:
    """Columns one under the other, `[P R, P R]`, each a kernel times the column that it is made from."""
    rows, wide = parts[0][0].place.shape
    data = np.concatenate([walk.mass.ravel() for walk, _ in parts])
    indices = np.concatenate([(walk.place + np.int32(source * rows)).ravel() for walk, source in parts])
    starts = np.arange(0, len(data) + 1, wide, dtype=np.int32)
    size = len(parts) * rows
    matrix = _sparse()((data, indices, starts), shape=(size, size))
    matrix.eliminate_zeros()
    return matrix


def _sparse() -> Any:
    """The matrices of scipy, which takes a third of a second to import: no work on a tree needs it."""
    from scipy.sparse import csr_array

    return csr_array


def transposed(step: csr_array) -> csr_array:
    """The other way round, in the same layout."""
    return _sparse()(step.T.tocsr())


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


def backward(step: csr_array, steps: range, after: Array, gained: Array, f: Array) -> Iterator[Array]:
    """B_t for t from the last of `steps` down to the first, `[P R]` each.

    Args:
        step: of P columns.
        steps: consecutive t.
        after: B of the step after them.
        gained: `[P R]`, of the endings.
        f: `[T + 1]`, by length.
    """
    ends = bool(gained.any())
    for t in reversed(steps):
        after = step @ after
        if ends:
            after += f[t] * gained
        yield after


def forward(back: csr_array, steps: range, now: Array) -> Iterator[Array]:
    """d_t for t in `steps` from that of the first, `[k, P R]` for so many steps as a cache holds.

    What is yielded is written over by the next.
    """
    size = max(1, CACHED // len(now))
    came = np.empty((min(size, len(steps)), len(now)))
    for first in range(0, len(steps), size):
        count = min(size, len(steps) - first)
        for k in range(count):
            if first or k:
                now = back @ now
            came[k] = now
        yield came[:count]


def last(items: Iterator[Array], otherwise: Array) -> Array:
    """The last of an iteration."""
    for item in items:
        otherwise = item
    return otherwise


@dataclass(frozen=True, kw_only=True)
class After:
    """The tokens after an edge: those of `near` for the next `steps` of them, those of `far` from there on.

    The values at j steps of `near` stand one under the other, `[(steps + 1) n R]`; an edge meets the last.
    """

    far: Walk
    near: Walk
    steps: int

    def step(self, columns: int) -> csr_array:
        """Of all of them: what j steps of `near` are worth is made of what j - 1 are."""
        close = [(self.near, source) for source in range(self.steps * columns)]
        return stacked([(self.far, column) for column in range(columns)] + close)

    def gained(self, worth: Array) -> Array:
        """As `Walk.gained`, of all of them."""
        return np.concatenate([self.far.gained(worth), *[self.near.gained(worth)] * self.steps])


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What n kinds of responses are worth: `cut` `[n, R]` where they are cut on their way to a row, `ends`
    `[n, R, E]` where they come from a row to an ending."""

    cut: Array
    ends: Array


def through(
    before: Walk, after: After, start: Array, worth: Worth, sums: Sequence[tuple[int, int, int]], f: Array
) -> Array:
    """Σ_t d_t(c) B_{t+1}(place_u(c)) of every row and branch, `[C, R, U]`.

    Args:
        before: kernel of the tokens before the branch.
        after: kernel of those after it.
        start: d_1 of P columns, `[P, R]`.
        worth: what the values are made of, n columns.
        sums: (p, n, c): the product of p and n is added to column c.
        f: `[T + 1]`, by length.
    """
    horizon, (count, rows), kinds = len(f) - 1, start.shape, len(worth.cut)
    step, back, gained = after.step(kinds), transposed(before.step(count)), after.gained(worth.ends)
    size = kinds * rows
    parts = blocks(horizon, size * (after.steps + 1))
    final = np.tile(worth.cut.ravel(), after.steps + 1) * f[horizon]
    known = [final]
    for steps in reversed(parts[1:]):
        known.append(last(backward(step, steps, known[-1], gained, f), final))
    inside = np.zeros((before.place.shape[1], max(c for *_, c in sums) + 1, rows))
    ended, now = np.zeros(start.shape), start.ravel()
    values = np.empty((len(parts[0]), kinds, rows))
    for steps, beyond in zip(parts, reversed(known), strict=True):
        values[len(steps) - 1] = beyond[-size:].reshape(kinds, rows)
        for k, value in enumerate(backward(step, steps[1:], beyond, gained, f), start=2):
            values[len(steps) - k] = value[-size:].reshape(kinds, rows)
        met = 0
        for came in forward(back, steps, now):
            visits = came.reshape(-1, count, rows)
            _add(inside, visits, values[met : met + len(came)], before.place, sums)
            if worth.ends.size:
                ended += np.einsum("t,tpr->pr", f[steps[met] : steps[met] + len(came)], visits)
            met += len(came)
        now = back @ came[-1]
    passed: Array = np.where(before.end.T[:, None] < 0, inside, 0.0).transpose(1, 2, 0).copy()
    if worth.ends.size:
        for p, n, c in sums:
            earned = np.take_along_axis(worth.ends[n], before.end.clip(0), axis=1)
            passed[c] += np.where(before.end < 0, 0.0, ended[p][:, None] * earned)
    return passed


def _add(
    inside: Array, came: Array, values: Array, place: NDArray[np.int32], sums: Sequence[tuple[int, int, int]]
) -> None:
    """Add Σ_t came_t(c) values_t(place_u(c)) to `inside` `[U, C, R]`, of some steps that a cache holds."""
    for u, to in enumerate(place.T):
        for n in {n for _, n, _ in sums}:
            ahead = np.take(values[:, n], to, axis=1, mode="clip")
            for p, kind, c in sums:
                if kind == n:
                    inside[u, c] += np.einsum("tr,tr->r", came[:, p], ahead)


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
    total = torch.where(total.abs() <= ROUNDING * moved.abs().sum(-1), 0.0, total)
    places, row = len(rewards), members * len(rewards)
    to = (where.place + (torch.arange(members) * places)[:, None, None]).view(-1, wide)
    at = (torch.arange(size) + (torch.arange(members) * places)[:, None]).flatten()
    still = (torch.arange(size, places) + (torch.arange(members) * places)[:, None]).flatten()
    k, q, rest = mass.view(-1, wide), moved.view(-1, wide), total.flatten()
    # one vector: the values of every order, then for every branch but the first how far its values are from the first's
    differ = Entries()
    for n in range(order):
        for u in range(1, wide):
            apart = (n * (wide - 1) + u - 1) * len(at) + torch.arange(len(at))
            differ.put(apart, n * row + to[:, u], torch.ones(()))
            differ.put(apart, n * row + to[:, 0], -torch.ones(()))
    after = Entries()
    for n in range(order + 1):
        after.put(n * row + still, n * row + still, torch.ones(()))
        for u in range(wide):
            after.put(n * row + at, n * row + to[:, u], k[:, u])
        if n:
            after.put(n * row + at, (n - 1) * row + to[:, 0], rest)
            for u in range(1, wide):
                apart = ((n - 1) * (wide - 1) + u - 1) * len(at) + torch.arange(len(at))
                after.put(n * row + at, (order + 1) * row + apart, q[:, u])
    value = np.zeros((order + 1) * row)
    value[:row] = rewards.repeat(members).numpy()
    height = order * (wide - 1) * len(at)
    difference, step = differ.matrix(height, len(value)), after.matrix(len(value), len(value) + height)
    for _ in range(horizon):
        value = step @ np.concatenate([value, difference @ value])
    return torch.from_numpy(value).view(order + 1, members, places)[..., :size].permute(1, 2, 0)


class Entries:
    """A sparse matrix while it is filled."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.columns: list[Tensor] = []
        self.data: list[Tensor] = []

    def put(self, rows: Tensor, columns: Tensor, data: Tensor) -> None:
        """Set entries, one a row."""
        self.rows.append(rows)
        self.columns.append(columns)
        self.data.append(data.double().expand(len(rows)))

    def matrix(self, height: int, width: int) -> csr_array:
        """What was set."""
        if not self.rows:
            return _sparse()((height, width), dtype=np.float64)
        rows, columns = (torch.cat(x).int().numpy() for x in (self.rows, self.columns))
        matrix = _sparse()((torch.cat(self.data).numpy(), (rows, columns)), shape=(height, width))
        matrix.eliminate_zeros()
        return matrix


def squares(mass: Walk, once: Walk, twice: Walk, worth: Worth, f: Array) -> Array:
    """Σ K (Σ_t x)² of every row, `[n, R]`, from the walks of K, K x and K x²."""
    kinds, rows = len(worth.cut), len(mass.place)
    size = kinds * rows
    step, once_step, twice_step = mass.step(3 * kinds), once.step(2 * kinds), twice.step(kinds)
    value = np.zeros(3 * size)
    value[:size] = worth.cut.ravel() * f[-1]
    ends = np.concatenate([walk.gained(worth.ends) for walk in (mass, once, twice)])
    for t in range(len(f) - 1, 0, -1):
        crossed, ahead = once_step @ value[: 2 * size], twice_step @ value[:size]
        value = step @ value
        value[size : 2 * size] += crossed[:size]
        value[2 * size :] += 2 * crossed[size:] + ahead
        if worth.ends.size:
            value += f[t] * ends
    return value[2 * size :].reshape(kinds, rows)


def log_mass(walk: Walk, start: Array, members: int, horizon: int) -> Tensor:
    """log Σ_y d_1 Π_t K over all responses of each member, `[M]`, whatever its size."""
    size = len(start) // members
    value, ending, scale, step = np.ones(len(start)), walk.ending.sum(1), np.zeros(members), walk.step()
    gained = ending.copy()
    for _ in range(horizon):
        value = step @ value + gained
        largest = value.reshape(members, size).max(1)
        if largest.max() > SCALED or largest.min() < 1 / SCALED:
            value = (value.reshape(members, size) / largest[:, None]).ravel()
            scale += np.log(largest)
            gained = (ending.reshape(members, size) * np.exp(-scale)[:, None]).ravel()
    total = (value * start).reshape(members, size).sum(1)
    return torch.from_numpy(np.log(total) + scale)
