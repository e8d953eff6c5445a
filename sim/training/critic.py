"""The critic of the simulator: for each member, one linear head on the state that its policy carries.

    V(c_t) = φ · (state after the tokens of c_t, 1)

The state is the normed output of every layer: all that the policy remembers of a context, and what its own head reads.
It is read without gradient, so the value loss moves φ and nothing else; as the policy learns, the state moves under
the head. φ starts at zero, so the first advantages are the rewards themselves. It belongs to the trainer: μ has none.

Shapes: M members, C of them with a critic, B responses, L positions, N layers, D width, F = N D + 1 features.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from firstorder.core.errors import NotFiniteError
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.value import value_loss
from firstorder.core.quantities import Moments
from firstorder.core.training.backend import Scored
from firstorder.sim import optimizer
from firstorder.sim.config import Sim
from firstorder.sim.optimizer import OptimizerState, Settings
from firstorder.sim.sampling.reader import Scores


@dataclass(frozen=True, kw_only=True)
class Critic:
    """φ `[C, F]` and its optimiser; `members` int64 `[C]` are the places of its members among all M."""

    members: Tensor
    phi: Tensor
    optimizer: OptimizerState
    settings: Settings


def start(recipes: list[Recipe], sim: Sim) -> Critic | None:
    """The critic before the first step; None where no recipe has one.

    Args:
        recipes: one a member.
        sim: the sizes.
    """
    members = [i for i, recipe in enumerate(recipes) if recipe.has_critic]
    if not members:
        return None
    phi = torch.zeros(len(members), sim.layers * sim.width + 1, dtype=torch.float64)
    settings = optimizer.settings([recipes[i].critic for i in members])
    return Critic(members=torch.tensor(members), phi=phi, optimizer=optimizer.start(phi), settings=settings)


def value(phi: Tensor, state: Tensor) -> Tensor:
    """V of contexts, `[C, ...]`, from `phi` `[C, F]` and the states `[C, ..., N, D]` that the policy carries there."""
    features = state.detach().flatten(-2)
    flat = features.flatten(1, -2)
    return (torch.einsum("cxf,cf->cx", flat, phi[:, :-1]) + phi[:, -1:]).view(features.shape[:-1])


def values(critic: Critic, scores: Scores) -> Tensor:
    """V(c_t) at every position, `[M, B, L]`, NaN for members without a critic."""
    known = scores.at(value(critic.phi, scores.state[critic.members]), critic.members)
    return _spread(known, critic, len(scores.state))


def fit(critic: Critic, minibatch: Scored, scores: Scores) -> tuple[Critic, Moments]:
    """One optimiser step of every critic down the gradient of its value loss.

    Raises:
        NotFiniteError: the gradient, or what it makes of the critic, is not finite.
    """
    assert minibatch.returns is not None
    phi = critic.phi.detach().requires_grad_()
    predicted = scores.at(value(phi, scores.state[critic.members]), critic.members)
    loss = value_loss(predicted, minibatch.returns[critic.members], minibatch.batch.mask[critic.members])
    (gradient,) = torch.autograd.grad(loss.sum(), phi)
    if not torch.isfinite(gradient).all():
        raise NotFiniteError("the gradient of the value loss is not finite; lower critic.lr")
    clipped, _ = optimizer.clip(gradient, critic.settings)
    moved, state_after = optimizer.step(critic.phi, clipped, critic.optimizer, critic.settings)
    if not torch.isfinite(moved).all():
        raise NotFiniteError("the critic is not finite after an update; lower critic.lr")
    lost = _spread(loss.detach(), critic, len(scores.state))
    return replace(critic, phi=moved, optimizer=state_after), {"critic/vf_loss": (lost, torch.ones_like(lost))}


def state(critic: Critic) -> dict[str, Any]:
    """All that a resumed run needs."""
    return {"phi": critic.phi, "optimizer": asdict(critic.optimizer)}


def load(critic: Critic, state: dict[str, Any]) -> Critic:
    """Go on from `state`."""
    return replace(critic, phi=state["phi"], optimizer=OptimizerState(**state["optimizer"]))


def _spread(x: Tensor, critic: Critic, members: int) -> Tensor:
    """A number of each member with a critic, among all, NaN for the others: `[C, ...]` to `[M, ...]`."""
    whole = x.new_full((members, *x.shape[1:]), torch.nan)
    whole[critic.members] = x
    return whole
