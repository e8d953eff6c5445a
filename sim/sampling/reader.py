"""How responses are sampled and scored: token by token, or from a table where the policy carries no state.

Shapes: M members, B responses, L positions, N layers, D width, K experts a token.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from firstorder.core.routing import Replay
from firstorder.sim.model.policy import Model
from firstorder.sim.tasks.task import SimTask

from .sequences import Rollouts, Sequences
from .table import Table


class Scores(Protocol):
    """Sequences under an engine; what it says off the response tokens means nothing."""

    @property
    def logp(self) -> Tensor:
        """`[M, B, L]` nats of each token given those before it."""

    @property
    def entropy(self) -> Tensor:
        """`[M, B, L]` nats of the distribution that each token was drawn from."""

    @property
    def outside(self) -> Tensor:
        """`[M, B, L]`, the mass of each distribution on tokens that are not kept; 0 without a mask."""

    @property
    def routes(self) -> Tensor:
        """`[M, B, L, N, K]`, the experts of each token run."""

    @property
    def gates(self) -> Tensor:
        """`[M, B, L, N, K]`, their gate weights, without gradient."""

    @property
    def live(self) -> Tensor:
        """`[M, B, L, N, K]`, what each router would have chosen without replay."""

    @property
    def margin(self) -> Tensor:
        """`[M, B, L, N]`, of that choice."""

    @property
    def state(self) -> Tensor:
        """`[M, ..., N, D]`, what the policy has made of each context, without gradient."""

    def at(self, values: Tensor, members: Tensor | None = None) -> Tensor:
        """`[C, B, L]`, values of the contexts of `state` where each token is said, of all or some `members` `[C]`."""


class Reader(Protocol):
    """What samples and scores."""

    def sample(self, model: Model, rows: Tensor, keys: Tensor, *, gates: bool = False) -> Rollouts:
        """Responses to prompts `rows`, int64 `[M, B]`, with random numbers of hash `keys` `[M, B]`; their gate weights
        too where `gates`."""

    def keys(self, tokens: Tensor) -> Tensor:
        """The hash of the context that ends in each token of sequences `[M, B, L]`, as an engine runs it; int64, of the
        same shape."""

    def score(
        self,
        model: Model,
        tokens: Tensor,
        replay: Replay | None = None,
        kept: Tensor | None = None,
        *,
        spread: bool = False,
    ) -> Scores:
        """An engine over sequences `[M, B, L]`; `replay` has experts `[M, B, L, N, K]`, its rule is broadcastable to
        `[M, B]`; `kept` `[M, B, L, C]` are the tokens that its distributions are renormalised over
        (`core.training.kept`). With `spread` entropies carry a gradient as log-probs do."""


def reader(task: SimTask) -> Reader:
    """The reader of a task's policy, for its training prompts."""
    if task.sim.carries:
        return Sequences(task=task)
    return Table(task=task, contexts=task.contexts(torch.arange(task.sim.training_prompts)))
