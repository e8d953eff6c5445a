"""Sample: one response with its prompt, as a dump holds it, laid out as `core.training.batch` wants it.

Shapes: L tokens (prompt and response, no padding), M MoE layers, K experts a token.

Position t holds token t, and `logp_mu[t]` = log μ(token t | tokens < t). Route row t is the routing of token t, so the
log-prob of token t was produced by row t - 1, and the last row is -1. A reader lays out; it does not judge: what a file
holds on the mask is kept as it is, NaN for null, so that what is wrong with it can be found and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from firstorder.core.errors import DataError

PER_TOKEN = ("logp_mu", "logp_old", "entropy", "advantage", "version")
ROUTED = ("routes", "routes_old")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One response. What a dump does not hold is None.

    Args:
        source: the file and the row in it, for people: `step_3/rank_0.jsonl line 12`.
        step: the global step whose batch it is in.
        tokens: int64 `[L]`.
        mask: bool `[L]`, True on the tokens that the policy sampled and the loss counts.
        logp_mu: float64 `[L]` nats, of the rollout engine; NaN where the dump has no number.
        logp_old: float64 `[L]` nats, of the trainer before the update, replay included where the run replays.
        entropy: float64 `[L]` nats, of the trainer's distribution.
        advantage: float64 `[L]`.
        version: int64 `[L]`, the weights that sampled each token, -1 where unknown.
        routes: int16 `[L, M, K]` of the rollout engine, -1 where missing.
        routes_old: int16 `[L, M, K]` of the trainer, routing by itself.
        reward: of the response.
        group: the prompt that it answers.
        columns: float64 `[L]` each, what else the dump holds for every token, under the dump's own names.
        notes: what the reader met and had to decide, with how often: `null log-probs`, `route rows missing at the end`.

    Raises:
        DataError: a column is not of the length of `tokens`; the source is named.
    """

    source: str
    step: int
    tokens: Tensor
    mask: Tensor
    logp_mu: Tensor | None = None
    logp_old: Tensor | None = None
    entropy: Tensor | None = None
    advantage: Tensor | None = None
    version: Tensor | None = None
    routes: Tensor | None = None
    routes_old: Tensor | None = None
    reward: float | None = None
    group: int | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        length = len(self.tokens)
        if not length:
            raise DataError(f"{self.source}: `tokens` is empty; a response needs at least one")
        known = {name: getattr(self, name) for name in ("mask", *PER_TOKEN, *ROUTED)} | dict(self.columns)
        for name, column in known.items():
            if column is not None and len(column) != length:
                raise DataError(f"{self.source}: `{name}` has {len(column)} entries and `tokens` {length}")
        if self.mask.dtype is not torch.bool:
            raise DataError(f"{self.source}: `mask` must be bool, got {self.mask.dtype}")
