"""AdamW and SGD for an ensemble: one vector of parameters, one learning rate and one gradient norm a member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firstorder.core.method.sections import Steps


@dataclass(frozen=True, kw_only=True)
class OptimizerState:
    """First and second moments `[M, P]` and the number of steps taken."""

    mean: Tensor
    square: Tensor
    steps: int


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The optimiser sections of the members as columns `[M, 1]`; `adamw` is bool."""

    adamw: Tensor
    lr: Tensor
    beta_1: Tensor
    beta_2: Tensor
    eps: Tensor
    weight_decay: Tensor
    max_grad_norm: Tensor


def settings(sections: Sequence[Steps]) -> Settings:
    """One section a member, as columns."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)[:, None]

    return Settings(
        adamw=torch.tensor([s.kind == "adamw" for s in sections])[:, None],
        lr=column([s.lr for s in sections]),
        beta_1=column([s.betas[0] for s in sections]),
        beta_2=column([s.betas[1] for s in sections]),
        eps=column([s.eps for s in sections]),
        weight_decay=column([s.weight_decay for s in sections]),
        max_grad_norm=column([s.max_grad_norm for s in sections]),
    )


def scaled(s: Settings, scale: Tensor) -> Settings:
    """The same with learning rates times `scale` `[M]`."""
    return replace(s, lr=s.lr * scale[:, None])


def start(parameters: Tensor) -> OptimizerState:
    """The state before the first step for parameters `[M, P]`."""
    return OptimizerState(mean=torch.zeros_like(parameters), square=torch.zeros_like(parameters), steps=0)


def clip(gradient: Tensor, s: Settings) -> tuple[Tensor, Tensor]:
    """The gradient scaled down to `max_grad_norm` member by member, and the norms `[M]` before."""
    norm = gradient.norm(dim=-1, keepdim=True)
    return gradient * (s.max_grad_norm / norm.clamp(min=1e-300)).clamp(max=1.0), norm[:, 0]


def step(parameters: Tensor, gradient: Tensor, state: OptimizerState, s: Settings) -> tuple[Tensor, OptimizerState]:
    """One descent step of AdamW (Loshchilov and Hutter 2019) or plain SGD; all `[M, P]`."""
    steps = state.steps + 1
    mean = s.beta_1 * state.mean + (1 - s.beta_1) * gradient
    square = s.beta_2 * state.square + (1 - s.beta_2) * gradient.square()
    adam = (mean / (1 - s.beta_1**steps)) / ((square / (1 - s.beta_2**steps)).sqrt() + s.eps)
    direction = torch.where(s.adamw, adam + s.weight_decay * parameters, gradient)
    return parameters - s.lr * direction, OptimizerState(mean=mean, square=square, steps=steps)
