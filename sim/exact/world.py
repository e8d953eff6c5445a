"""What a world is to the mathematics: contexts, where tokens lead, and sums over all responses.

Shapes: M members, N contexts, V vocabulary, T horizon, X prompts, n reward levels, B responses, C columns.

Two worlds are known. In the tree a context is a prefix, and all responses are enumerated; in the graph contexts merge,
and responses of any length are summed over by recursion:

    d_1 = prompts,   d_{t+1}(c') = Σ_{(c,a) → c'} d_t(c) K(a|c)          how likely each context is come to
    B_t(c) = Σ_a K(a|c) B_{t+1}(follow(c, a))                            what is earned from there on

with K a policy, or a policy times whatever else is a product over tokens. All that is exact is made of the four sums
of `World`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from firstorder.sim.model.policy import Model
from firstorder.sim.tasks.task import SimTask

from .edges import Given, Pass, Routes

CHUNK_TOKENS = 1 << 21  # members x responses x tokens that are weighted at once


@dataclass(frozen=True, kw_only=True)
class Responses:
    """Responses as paths over edges, all that there are or a sample.

    Args:
        path: int32 `[B, T]`, or `[M, B, T]` where each member has its own: edge (context · V + token) of each token; 0
            off the mask.
        mask: bool, as `path`.
        prompt: int64 `[..., B]`, the prompt answered.
        rewards: `[..., B]`.
        vocab: V.
        sampled: whether they were drawn from μ_old, or are all.
    """

    path: Tensor
    mask: Tensor
    prompt: Tensor
    rewards: Tensor
    vocab: int
    sampled: bool

    def __len__(self) -> int:
        """B."""
        return int(self.mask.shape[-2])

    @property
    def tokens(self) -> Tensor:
        """Tokens of each response, int64, as `path`, 0 off the mask."""
        return torch.where(self.mask, self.path % self.vocab, 0).long()

    @property
    def contexts(self) -> Tensor:
        """Context in which each token is said, int64, as `path`, 0 off the mask."""
        return self.path.long() // self.vocab

    @property
    def lengths(self) -> Tensor:
        """Tokens of each response, `[..., B]`."""
        return self.mask.sum(-1)

    def of(self, cut: slice) -> Responses:
        """Some of the responses."""
        return Responses(
            path=self.path[..., cut, :],
            mask=self.mask[..., cut, :],
            prompt=self.prompt[..., cut],
            rewards=self.rewards[..., cut],
            vocab=self.vocab,
            sampled=self.sampled,
        )

    def measure(self, logp: Tensor, prompts: int) -> Tensor:
        """How much each response counts in an expectation under a policy with edge log-probs `[M, N, V]`, `[M, B]`: its
        probability, prompts equally likely, or 1/B where that policy drew it."""
        if self.sampled:
            return torch.full((len(logp), len(self)), 1.0 / len(self), dtype=torch.float64)
        return gather(logp, self).sum(-1).exp() / prompts


@dataclass(frozen=True, kw_only=True)
class Near:
    """Another kernel `[M, N, V]` for the next `steps` tokens."""

    kernel: Tensor
    steps: int


class World(Protocol):
    """Contexts and transitions, with the sums over responses that every exact number is made of.

    A kernel K is `[M, N, V]`, non-negative: the probability of each token in each context, or that times another
    factor of a token. E below is over prompts, equally likely.
    """

    @property
    def task(self) -> SimTask:
        """What is to be learnt."""

    @property
    def prompts(self) -> int:
        """X."""

    @property
    def contexts(self) -> int:
        """N."""

    @property
    def vocab(self) -> int:
        """V."""

    @property
    def horizon(self) -> int:
        """T."""

    @property
    def levels(self) -> Tensor:
        """The distinct rewards, ascending, `[n]`."""

    @property
    def exhaustive(self) -> bool:
        """Whether `responses` are all that there are."""

    @property
    def reachable(self) -> Tensor:
        """Whether responses to each prompt can come to each context, bool `[X, N]`."""

    @property
    def keys(self) -> Routes:
        """The hash of the context that ends in every token that is run, int64: `[N]`, and `[S_t - 1, N_t]` a level."""

    def run(self, model: Model, replay: Given | None = None) -> Pass:
        """An engine at every context; with `replay`, at every token with what is given there."""

    def states(self, model: Model, replay: Given | None = None) -> Tensor:
        """What an engine has made of every context, `[M, N, L, D]` without gradient; arguments as of `run`."""

    def earned(self, kernel: Tensor, by_length: Tensor | None = None) -> Tensor:
        """Σ_y Π_t K(y_t|c_t) f(|y|) over the responses to each prompt that earn each level, `[M, n, X]`.

        `by_length` `[T + 1]` holds f; None is 1.
        """

    def through(
        self, before: Tensor, after: Tensor, worth: Tensor, by_length: Tensor | None = None, near: Near | None = None
    ) -> Tensor:
        """What passes each edge, `[M, C, N, V]`, before the edge's own factor:

            E Σ_t Σ_y 1{edge t of y is (c, a)} Π_{s<t} before(y_s|c_s) Π_{s>t} after(y_s|c_s) worth(x, R(y)) f(|y|)

        with `worth` `[M, C, n, X]`; the tokens right after the edge have the kernel of `near` in place of `after`.
        """

    def visits(self, kernel: Tensor) -> Tensor:
        """Σ_t d_t(c): how often a response comes to each context, `[M, N]`."""

    def by_step(self, kernel: Tensor, x: Tensor) -> Tensor:
        """Σ_c d_t(c) x(c) of every step, `[..., M, T]`; `x` is `[..., M, N]`."""

    def expansion(self, kernel: Tensor, change: Tensor, order: int) -> Tensor:
        """e_k = E Σ_y Π_t K(y_t|c_t) R(y) Σ_{t_1 < ... < t_k} Π_i change(y_{t_i}|c_{t_i}) for k = 0, ..., `order`,
        `[M, order + 1]`; `change` is `[M, N, V]`."""

    def squares(self, kernel: Tensor, x: Tensor, by_length: Tensor | None = None) -> Tensor:
        """Σ_y Π_t K(y_t|c_t) (Σ_t x(c_t, y_t))² f(|y|) over the responses to each prompt that earn each level,
        `[M, n, X]`; `x` is `[M, N, V]`, `kernel` that or `[1, N, V]`."""

    def log_mass(self, kernel: Tensor) -> Tensor:
        """log E Σ_y Π_t K(y_t|c_t), `[M]`, of a kernel whose products may leave the range of float64."""

    def run_rows(self, routes: Routes, kernel: Tensor) -> Rows:
        """The rows that an engine runs, each as often as `kernel` makes it."""

    def responses(self, logp: Tensor) -> Responses:
        """All responses, or a sample of a policy with edge log-probs `[M, N, V]`."""


def worth_ahead(kernel: Tensor, world: World) -> Tensor:
    """E[Σ_t 1{edge t} R] over the responses of a policy before the edge's own probability, `[M, N, V]`."""
    worth = world.levels[:, None].expand(len(kernel), 1, -1, world.prompts)
    return world.through(kernel, kernel, worth)[:, 0]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows that an engine runs: `ids` `[M, R, L, K]`; `before`, of the token before each, -1 where there is none;
    `weight` `[M, R]`, how often each is run in a response."""

    ids: Tensor
    before: Tensor
    weight: Tensor


def chunks(responses: Responses, members: int) -> Iterator[Responses]:
    """The responses in parts, small enough for M members that sums over them take little memory."""
    size = max(1, CHUNK_TOKENS // (responses.mask.shape[-1] * members))
    return (responses.of(slice(start, start + size)) for start in range(0, len(responses), size))


def gather(edges: Tensor, responses: Responses) -> Tensor:
    """Per-edge values `[M, N, V]` along every response, `[M, B, T]`, 0 off the mask."""
    return torch.where(responses.mask, _taken(edges.flatten(1), responses.path), 0.0)


def gather_contexts(values: Tensor, responses: Responses) -> Tensor:
    """Per-context values `[M, N]` along every response, `[M, B, T]`, 0 off the mask."""
    taken = _taken(values, responses.path // responses.vocab)
    return torch.where(responses.mask, taken, torch.zeros((), dtype=values.dtype))


def scatter(values: Tensor, responses: Responses, contexts: int) -> Tensor:
    """The adjoint of `gather`: token values `[M, B, T]` added up on their edges, `[M, N, V]`."""
    edges = torch.zeros(len(values), contexts * responses.vocab, dtype=values.dtype)
    masked = torch.where(responses.mask, values, 0.0).flatten(1)
    if responses.path.ndim == 2:
        edges.index_add_(1, responses.path.flatten().long(), masked)
    else:
        edges.scatter_add_(1, responses.path.flatten(1).long(), masked)
    return edges.view(len(values), contexts, responses.vocab)


def _taken(flat: Tensor, place: Tensor) -> Tensor:
    """`flat` `[M, ...]` at places `[B, T]` that all members share, or `[M, B, T]` of each."""
    if place.ndim == 2:
        return flat[:, place.long()]
    return flat.gather(1, place.flatten(1).long()).view(place.shape)
