"""What an engine says of every context and next token, and sums over them: of any world, whatever its contexts are.

Shapes: M members, N contexts, V vocabulary, L MoE layers, K experts a token, E experts, P parameters.

An *edge* is a context and its next token. However responses are enumerated or contexts merge, an expected update is
one vector-Jacobian product with a coefficient an edge, and what holds for a response token is a mean over contexts,
each by its share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firstorder.core.routing import Replay
from firstorder.sim.model.policy import Weights, gradient

SERIES = 1.0  # of a difference of log-probs: e^d - 1 - d loses no more than two bits beyond it
ORDER = 18  # of the series: at d = 1 the first term left out is a tenth of float64's rounding


@dataclass(frozen=True, kw_only=True)
class Routes:
    """Experts at every token that an engine runs, int16, or their gate weights, float64.

    `contexts` `[M, N, L, K]` holds the last token of each context, `leads`, one `[M, S_t - 1, N_t, L, K]` a level, the
    tokens before it in its lead: all but the last of the prompt, and a response token that an environment answers.
    """

    contexts: Tensor
    leads: tuple[Tensor, ...]

    def each(self, change: Callable[[Tensor], Tensor]) -> Routes:
        """All of them changed alike."""
        return Routes(contexts=change(self.contexts), leads=tuple(map(change, self.leads)))

    def equal(self, other: Routes) -> bool:
        """Whether every token visits the same experts, in the same order."""
        pairs = zip((self.contexts, *self.leads), (other.contexts, *other.leads), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)


@dataclass(frozen=True, kw_only=True)
class Given:
    """What replay gives an engine: experts at every token, their gates where these are constants, and the rule.

    Args:
        routes: the experts, -1 where live.
        gates: their gate weights; None where they are made live.
        margin, condition: as of `core.routing.Replay`, the same everywhere; 0 is no condition.
    """

    routes: Routes
    gates: Routes | None = None
    margin: float | None = None
    condition: float = 0.0

    def at(self, pick: Callable[[Routes], Tensor]) -> Replay:
        """That of some tokens, whose experts, and gates, `pick` takes `[M, n, L, K]`."""
        return Replay(
            ids=pick(self.routes),
            gates=None if self.gates is None else pick(self.gates),
            margin=None if self.margin is None else torch.tensor(self.margin, dtype=torch.float64),
            condition=torch.tensor(self.condition, dtype=torch.float64) if self.condition else None,
        )


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What an engine says about every context.

    Args:
        logp: `[M, N, V]` nats, log-probs of the next token; carries the gradient if the weights do.
        routes: the experts it used.
        gates: their gate weights, without gradient.
        live: those that its routers would have chosen without replay.
        margin: `[M, N, L]`, distance of each live choice from flipping.
        router_logp: `[M, N, L, E]` nats, log softmax of the router logits.
    """

    logp: Tensor
    routes: Routes
    gates: Routes
    live: Routes
    margin: Tensor
    router_logp: Tensor

    def frozen(self) -> Pass:
        """The same without its graph."""
        return replace(self, logp=self.logp.detach())


def vjp(target: Pass, coefficients: Tensor, weights: Weights) -> Tensor:
    """Σ_edges a_edge ∇ log π(edge) for each member, `[M, P]`; the graph is kept.

    Args:
        target: a pass whose weights require grad.
        coefficients: `[M, N, V]`, a.
        weights: the leaves.
    """
    # of a scalar: given `grad_outputs`, autograd would import sympy first
    return gradient((coefficients * target.logp).sum(), weights, keep=True)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of two arrays of log-probs over the last axis, nats:

    Σ p (e^d - 1 - d),   d = log q - log p

    which is Σ p log(p/q) + Σ (q - p). No term is negative, so that none cancels another where p and q are close, and
    probabilities that sum to 1 but for rounding leave no error of that size.
    """
    first, apart = p.exp(), q - p
    near = apart.abs() < SERIES
    close = apart.where(near, 0.0)  # a power of what is not near could overflow
    far = q.exp() - first - first * apart
    return torch.where(near, first * close.square() * _beyond_linear(close), far).sum(-1)


def _beyond_linear(x: Tensor) -> Tensor:
    """(e^x - 1 - x) / x² for |x| < `SERIES`, by its series, which is exact at 0 too."""
    total = torch.full_like(x, 1 / math.factorial(ORDER))
    for power in range(ORDER - 1, 1, -1):
        total = total * x + 1 / math.factorial(power)
    return total


def entropy(logp: Tensor) -> Tensor:
    """Entropy of log-probs over the last axis, nats."""
    return -(logp.exp() * logp).sum(-1)


def entropy_gradient(target: Pass, share: Tensor, weights: Weights) -> Tensor:
    """∇ of the mean entropy of π_θ over contexts that are held fixed, nats a response token, `[M, P]`.

    Each context c adds -Σ_v π(v|c) log π(v|c) ∇ log π(v|c).

    Args:
        target: π_θ, whose weights require grad.
        share: `[M, N]`, how much each context counts.
        weights: the leaves.
    """
    logp = target.logp.detach()
    return vjp(target, -share[..., None] * logp.exp() * logp, weights)


def router_shift(target: Pass, old: Pass) -> Tensor:
    """Mean over layers and the experts that π_old used of |log router_θ - log router_old|, `[M, N]`."""
    used = old.routes.contexts.long()
    shift = target.router_logp.gather(-1, used) - old.router_logp.gather(-1, used)
    return shift.abs().mean((-2, -1))
