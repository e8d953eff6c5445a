"""TorchRL: its LLM losses, the advantage transform of groups, and its GAE."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .inputs import Batch, gradient

Answer = Callable[[Batch], Any]


def answers() -> dict[str, Answer]:
    """By row, what this peer makes of a batch."""
    losses = {
        "GRPOLoss, token_mean": _loss("GRPOLoss", 0.2, "token_mean"),
        "GRPOLoss, prompt_mean": _loss("GRPOLoss", 0.2, "prompt_mean"),
        "DAPO": _loss("DAPO", (0.2, 0.28), "token_mean"),
        "CISPOLoss": _loss("CISPOLoss", (0.2, 0.28), "none"),
    }
    return {name: _graded(loss) for name, loss in losses.items()} | {"ESS": _ess}


def of_rewards() -> dict[str, Callable[[list[list[float]]], Any]]:
    """By row, the advantages `[groups, G]` of groups of rewards."""
    return {"MCAdvantage": _advantages}


def of_values() -> dict[str, Callable[[dict[str, Any], float], Any]]:
    """By row, the advantages `[B, T]` of a critic's values at a λ."""
    return {"gae": _gae}


def _graded(loss: Callable[[Batch], Tensor]) -> Answer:
    return lambda batch: gradient(loss, batch)


def _loss(name: str, clip: Any, how: str) -> Callable[[Batch], Tensor]:
    """A loss on π_θ / π_old; where it is not aggregated, the sum of each response is averaged."""

    def loss(batch: Batch) -> Tensor:
        found = _output(name, clip, how, batch.theta, batch.old, batch).loss_objective
        return found.sum() / batch.size if how == "none" else found.sum()  # type: ignore[no-any-return]

    return loss


def _output(name: str, clip: Any, how: str, theta: Tensor, old: Tensor, batch: Batch) -> Any:
    """What a loss returns for an actor whose log-probs are `theta`."""
    losses = import_module("torchrl.objectives.llm.grpo")
    tensors = import_module("tensordict").TensorDict
    module = getattr(losses, name)(
        actor_network=_Actor(theta, batch.mask),
        clip_epsilon=clip,
        aggregation=how,
        entropy_bonus=False,
        masking_strategy="generic",
        device="cpu",
    )
    tokens = torch.zeros(batch.mask.shape, dtype=torch.long)
    given = tensors(
        {
            ("tokens", "full"): tokens,
            ("log_probs", "full"): old,
            "advantage": batch.advantages[..., None],
        },
        batch_size=[batch.size],
    )
    return module(given)


class _Actor(torch.nn.Module):
    """A policy that knows the log-probs of the tokens that were sampled."""

    def __init__(self, logp: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.dist = SimpleNamespace(mask=mask, log_prob=lambda _: logp)

    def get_dist(self, *_: Any, **__: Any) -> Any:
        """The distribution of a batch, whatever the batch."""
        return self.dist


def _ess(batch: Batch) -> float:
    """The effective sample size of old / mu, as the loss logs it."""
    return float(_output("GRPOLoss", 0.2, "token_mean", batch.old, batch.mu, batch).ESS)


def _advantages(groups: list[list[float]]) -> Any:
    transform = import_module("torchrl.objectives.llm.grpo").MCAdvantage
    tensors = import_module("tensordict").TensorDict
    found = []
    for rewards in groups:
        made = transform(grpo_size=len(rewards), prompt_key="query")
        for reward in rewards:
            trajectory = tensors(
                {
                    "query": ["prompt"],
                    ("next", "reward"): torch.tensor([[[reward]]], dtype=torch.float64),
                    ("next", "done"): torch.ones(1, 1, dtype=torch.bool),
                },
                batch_size=[1],
            )
            done = made.inv(trajectory)
        found.append(done["advantage"].flatten().tolist())
    return found


def _gae(valued: dict[str, Any], lam: float) -> Any:
    """Response by response, on its response tokens alone: this one knows no tokens between."""
    functional = import_module("torchrl.objectives.value.functional")
    rows = []
    for values, mask, reward in zip(valued["values"], valued["mask"], valued["rewards"], strict=True):
        at = [t for t, on in enumerate(mask) if on]
        value = torch.tensor([[values[t]] for t in at], dtype=torch.float64)
        end = torch.zeros(len(at), 1, dtype=torch.bool)
        end[-1] = True
        earned = torch.where(end, torch.tensor(reward, dtype=torch.float64), 0.0)
        later = torch.cat([value[1:], torch.zeros_like(value[:1])])
        advantage, _ = functional.generalized_advantage_estimate(1.0, lam, value, later, earned, end, end)
        row = [0.0] * len(mask)
        for t, found in zip(at, advantage.flatten().tolist(), strict=True):
            row[t] = found
        rows.append(row)
    return rows
