"""Sampled responses as a rollout engine returns them, and the `RolloutBatch` they make.

Shapes: B responses of L positions, M MoE layers, K experts a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from firstorder.core.errors import DataError
from firstorder.core.routing import check_routes
from firstorder.core.training.batch import RolloutBatch


@dataclass(frozen=True, kw_only=True)
class Response:
    """One sampled response, or all that follows a prompt in several turns.

    Args:
        tokens: ids, the end token included if it was sampled.
        logp: nats of each, under the distribution it was drawn from; 0 for those of the environment.
        routes: integer `[prompt + response - 1, M, K]`, a row for each token that was run.
        ended: it ended by itself and was not cut at the limit.
        gates: float32, as `routes`, the weights that the experts were given; None where the engine sends none.
        sampled: False for the environment's tokens; all are the policy's unless given.
        kept: ids of the tokens that each was sampled from, none where all were or none was sampled; None for no top-p,
            top-k or min-p.
    """

    tokens: list[int]
    logp: list[float]
    routes: Tensor
    ended: bool
    gates: Tensor | None = None
    sampled: list[bool] = field(default_factory=list)
    kept: list[list[int]] | None = None

    def __post_init__(self) -> None:
        if not self.sampled:
            object.__setattr__(self, "sampled", [True] * len(self.tokens))


class Engine(Protocol):
    """A rollout engine: samples, and takes new weights.

    Args:
        emulated: what it computes in fp8 is emulated, for want of kernels.
    """

    emulated: bool

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int]) -> list[Response]:
        """One response to each prompt, its random numbers from its own seed."""

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take weights under the names of Hugging Face; whatever was cached under the old ones is dropped."""

    def close(self) -> None:
        """Remove what it keeps outside of the process."""


def collate(
    prompts: Sequence[list[int]],
    responses: Sequence[Response],
    rewards: Sequence[float],
    groups: Sequence[int],
    layers: int,
    top_k: int,
    experts: int,
) -> RolloutBatch:
    """Responses, padded at the end, in the contract of `core.training.batch`.

    Args:
        prompts: token ids, one list a response.
        responses: of the engine.
        rewards: one a response.
        groups: the prompt that each response answers.
        layers, top_k, experts: M, K and the number of experts of the model.

    Raises:
        DataError: log-probs are missing; or routes are of another shape, no ids of the model's experts, or all zero,
            which is how an engine that records none may look.
    """
    if top_k and not any(response.routes.to(torch.int64).any() for response in responses):
        raise DataError("`routes` are all zero: the rollout engine did not record them; enable its routed experts")
    lengths = torch.tensor([len(p) + len(r.tokens) for p, r in zip(prompts, responses, strict=True)])
    shape = (len(prompts), int(lengths.max()))
    tokens = torch.zeros(shape, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.bool)
    logp = torch.zeros(shape, dtype=torch.float64)
    routes = torch.full((*shape, layers, top_k), -1, dtype=torch.int16)
    gates = torch.zeros(routes.shape) if any(response.gates is not None for response in responses) else None
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        first, last = len(prompt), len(prompt) + len(response.tokens)
        _check(response, last - 1, layers, top_k, experts)
        tokens[row, :last] = torch.tensor(prompt + response.tokens)
        mask[row, first:last] = torch.tensor(response.sampled)
        logp[row, first:last] = torch.tensor(response.logp, dtype=torch.float64)
        routes[row, : last - 1] = response.routes.to(torch.int16)
        if gates is not None:
            gates[row, : last - 1] = _gates(response)
    return RolloutBatch(
        tokens=tokens,
        mask=mask,
        lengths=lengths,
        logp_mu=logp,
        rewards=torch.tensor(rewards, dtype=torch.float64),
        groups=torch.tensor(groups),
        routes=routes,
        gates=gates,
        kept=_kept(prompts, responses, shape),
    )


def _gates(response: Response) -> Tensor:
    if response.gates is None or response.gates.shape != response.routes.shape:
        got = "none" if response.gates is None else list(response.gates.shape)
        raise DataError(f"`gates` of a response must be {list(response.routes.shape)}, as its routes are, got {got}")
    return response.gates


def _kept(prompts: Sequence[list[int]], responses: Sequence[Response], shape: tuple[int, int]) -> Tensor | None:
    """The tokens that each was sampled from, int32 `[B, L, C]`, -1 behind them; None for no top-p, top-k or min-p."""
    if all(response.kept is None for response in responses):
        return None
    rows: list[list[list[int]]] = [
        [[] for _ in prompt] + (response.kept or []) for prompt, response in zip(prompts, responses, strict=True)
    ]
    most = max(1, max(len(ids) for row in rows for ids in row))
    kept = torch.full((*shape, most), -1, dtype=torch.int32)
    for number, row in enumerate(rows):
        kept[number, : len(row)] = torch.tensor([ids + [-1] * (most - len(ids)) for ids in row], dtype=torch.int32)
    return kept


def _check(response: Response, rows: int, layers: int, top_k: int, experts: int) -> None:
    if response.kept is not None and len(response.kept) != len(response.tokens):
        raise DataError(
            f"a response of {len(response.tokens)} tokens says of {len(response.kept)} which tokens were kept; the "
            "rollout engine must say it of every sampled token"
        )
    if len(response.logp) != len(response.tokens):
        raise DataError(
            f"a response of {len(response.tokens)} tokens has {len(response.logp)} log-probs; the rollout engine must "
            "return one for every sampled token"
        )
    kind = response.routes.dtype
    if kind.is_floating_point or kind is torch.bool:
        raise DataError(f"`routes` of a response must be integers, got {kind}; is the rollout engine vLLM 0.30.0?")
    ids = response.routes.to(torch.int64)
    if tuple(ids.shape) != (rows, layers, top_k):
        raise DataError(
            f"`routes` of a response must be [{rows}, {layers}, {top_k}] (a row for each token that was run, MoE "
            f"layers, experts a token), got {list(ids.shape)}; is it the same model?"
        )
    if ids.numel() and int(ids.min()) < 0:
        raise DataError(
            f"`routes` of a response must name the expert of every token that was run, got {int(ids.min())}; the "
            "rollout engine did not record all of them"
        )
    check_routes(ids, experts)
