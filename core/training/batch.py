"""RolloutBatch: the contract between whoever samples and whoever trains.

Shapes: `...` any leading axes (an ensemble), B responses, L tokens (prompt and response, padded at the end), M MoE
layers, K experts a token.

Position t holds token t; `logp_mu[:, t]` = log μ(token t | tokens < t), which the engine computed while it ran
token t - 1. Route row t is the routing of token t, so the log-prob of token t was produced by row t - 1, and the
last token of a response, never run, has the row -1. Prompt, environment and padding tokens have mask False and
log-prob 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from firstorder.core.errors import DataError
from firstorder.core.method.stats import check_log_probs, check_rewards_finite, real
from firstorder.core.routing import check_routes

from .kept import check_kept


@dataclass(frozen=True, kw_only=True)
class RolloutBatch:
    """Responses with everything that training needs to know about how they were sampled.

    Args:
        tokens: int64 `[..., B, L]`.
        mask: bool `[..., B, L]`, True on the tokens that the policy sampled.
        lengths: int64 `[..., B]`, tokens that are not padding.
        logp_mu: `[..., B, L]` nats, of the distribution actually sampled from, temperature included.
        rewards: `[..., B]`, finite; integers, bools and half floats become float32.
        groups: int64 `[..., B]`, the prompt that a response answers; a group's responses share a baseline.
        routes: int16 `[..., B, L, M, K]` of the inference engine, or None for a dense model.
        gates: `[..., B, L, M, K]`, the gate weights of `routes`; None where the engine does not send them.
        measure: `[..., B]` probability of each response in an exhaustive batch, summing to 1; None when sampled.
        kept: int32 `[..., B, L, C]`, the tokens that each was sampled from, -1 behind them and where nothing was left
            out (`core.training.kept`); None for no top-p, top-k or min-p.

    Raises:
        DataError: naming the field, the rule and what was got.
    """

    tokens: Tensor
    mask: Tensor
    lengths: Tensor
    logp_mu: Tensor
    rewards: Tensor
    groups: Tensor
    routes: Tensor | None = None
    gates: Tensor | None = None
    measure: Tensor | None = None
    kept: Tensor | None = None

    def __post_init__(self) -> None:
        _check_shapes(self)
        object.__setattr__(self, "rewards", real(self.rewards))
        _check_values(self)
        if self.routes is not None:
            _check_rows(self.routes, self.lengths)
        if self.gates is not None:
            _check_gates(self.gates, self.routes)
        if self.kept is not None:
            check_kept(self.kept, self.tokens, self.mask)


def check_expert_ids(batch: RolloutBatch, experts: int) -> None:
    """Refuse routes whose ids are out of range, repeated or plainly fills; see `routing.check_routes`."""
    if batch.routes is not None:
        check_routes(batch.routes, experts)


def check_groups(batch: RolloutBatch, prompts: int, group_size: int) -> None:
    """Refuse a batch that is not `prompts` groups of `group_size` responses, a group's responses side by side.

    Raises:
        DataError: with the sizes, or that a group mixes prompts.
    """
    responses = batch.groups.shape[-1]
    if responses != prompts * group_size:
        raise DataError(
            f"a batch must hold schedule.prompts x schedule.group_size = {prompts} x {group_size} responses, "
            f"got {responses}"
        )
    grouped = batch.groups.reshape(*batch.groups.shape[:-1], prompts, group_size)
    if (grouped != grouped[..., :1]).any():
        raise DataError("the responses of a group must lie side by side and answer one prompt, got two prompts in one")


def check_rewards(batch: RolloutBatch, low: float, high: float) -> None:
    """Refuse rewards outside the range that their task declares.

    Raises:
        DataError: with the worst of them.
    """
    lowest, highest = float(batch.rewards.min()), float(batch.rewards.max())
    if lowest < low or highest > high:
        worst = lowest if lowest < low else highest
        raise DataError(f"`rewards` must lie in [{low:g}, {high:g}], got {worst:g}; check the verifier of the task")


def alignment(logp_mu: Tensor, logp_pi: Tensor, mask: Tensor) -> int:
    """By how many positions two log-prob arrays are shifted: 0, or the shift in {-1, +1} that fits better.

    Two engines that hold the same weights agree closely where they are aligned. If moving one array by a token
    brings a smaller mean |Δ log p|, the rows of one engine are read one off.

    Args:
        logp_mu: `[B, L]` as recorded.
        logp_pi: `[B, L]` as rescored by the trainer at the same weights.
        mask: bool `[B, L]`.
    """
    known = mask & logp_pi.isfinite()  # a token that pi cannot choose is far from wherever it is laid
    distance = {}
    for shift in (0, -1, 1):
        apart, seen = shifted(logp_mu, logp_pi, known, shift)
        distance[shift] = float(apart[seen].mean()) if seen.any() else float("inf")
    return min(distance, key=lambda s: (distance[s], abs(s)))


def shifted(logp_mu: Tensor, logp_pi: Tensor, mask: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """|log mu - log pi| `[B, L]` with log mu moved to the right by a shift, and the tokens where both are on the mask.

    Args:
        logp_mu: `[B, L]` nats.
        logp_pi: `[B, L]` nats.
        mask: bool `[B, L]`, False at position 0.
        shift: positions.
    """
    apart = (torch.roll(logp_mu, shift, dims=-1) - logp_pi).abs()
    there = torch.roll(mask, shift, dims=-1)
    position = torch.arange(mask.shape[-1], device=mask.device) - shift
    return apart, mask & there & (position >= 0) & (position < mask.shape[-1])


def check_alignment(logp_mu: Tensor, logp_pi: Tensor, mask: Tensor) -> None:
    """Refuse a batch whose recorded log-probs are shifted by a row against the trainer's.

    Raises:
        DataError: with the shift found.
    """
    shift = alignment(logp_mu, logp_pi, mask)
    if shift != 0:
        raise DataError(
            f"`logp_mu` is shifted by {-shift:+d} token against the trainer's log-probs; "
            "position t must hold log p(token t | tokens < t)"
        )


def _check_shapes(b: RolloutBatch) -> None:
    if b.tokens.ndim < 2:
        raise DataError(f"`tokens` must be [..., batch, length], got {list(b.tokens.shape)}")
    whole = tuple(b.tokens.shape)
    if 0 in whole:
        raise DataError(f"a batch must hold at least one response of at least one token, got `tokens` {list(whole)}")
    expected = dict.fromkeys(("mask", "logp_mu"), whole)
    expected |= dict.fromkeys(("lengths", "rewards", "groups"), whole[:-1])
    if b.measure is not None:
        expected["measure"] = whole[:-1]
    for name, shape in expected.items():
        if tuple(getattr(b, name).shape) != shape:
            raise DataError(f"`{name}` must be {list(shape)}, got {list(getattr(b, name).shape)}")
    if b.routes is not None and tuple(b.routes.shape[:-2]) != whole:
        sizes = ", ".join(str(n) for n in whole)
        raise DataError(f"`routes` must be [{sizes}, layers, k], got {list(b.routes.shape)}")


def _check_values(b: RolloutBatch) -> None:
    if b.mask.dtype is not torch.bool:
        raise DataError(f"`mask` must be bool, got {b.mask.dtype}")
    check_rewards_finite(b.rewards)
    check_log_probs("logp_mu", b.logp_mu, b.mask)
    if (b.logp_mu[~b.mask] != 0).any():
        raise DataError("`logp_mu` must be 0 where `mask` is False; the array is shifted or the mask is wrong")
    if (b.lengths < 1).any() or (b.lengths > b.tokens.shape[-1]).any():
        raise DataError(f"`lengths` must lie in 1..{b.tokens.shape[-1]}, got {b.lengths.tolist()}")
    position = torch.arange(b.tokens.shape[-1], device=b.tokens.device)
    if (b.mask & (position >= b.lengths[..., None])).any():
        raise DataError("`mask` must be False on padding, got a sampled token beyond `lengths`")
    if b.mask[..., 0].any():
        raise DataError("`mask` must be False at position 0: no token precedes it, so nothing produced its log-prob")
    if b.measure is not None:
        total = b.measure.double().sum(-1)
        if not (b.measure >= 0).all() or ((total - 1.0).abs() > 1e-6).any():
            raise DataError(
                f"`measure` must be probabilities summing to 1, got a sum of {float(total.flatten()[0]):.9g}"
            )


def _check_rows(routes: Tensor, lengths: Tensor) -> None:
    if routes.dtype.is_floating_point:
        raise DataError(f"`routes` must be integers, got {routes.dtype}")
    rows, position = (routes >= 0).all(-1).all(-1), torch.arange(routes.shape[-3], device=routes.device)
    unused = position >= (lengths - 1)[..., None]
    if (routes[unused] != -1).any():
        raise DataError(
            "`routes` must be -1 in the row of the last token and beyond (it is never run); the rows are shifted by one"
        )
    last, before = (lengths - 2).clamp(min=0)[..., None], (lengths - 3).clamp(min=0)[..., None]
    long = lengths[..., None] >= 3
    early = (long & rows.gather(-1, before) & ~rows.gather(-1, last)).any()
    # where rows are missing elsewhere too, the last of a response may be one of them; of all responses it is none
    elsewhere = (~rows & (position < (lengths - 2).clamp(min=0)[..., None])).any()
    if early and not (elsewhere and rows.gather(-1, last)[long].any()):
        raise DataError(
            "`routes` end one row early: the row that produced the last token is -1; the rows are shifted by one"
        )


def _check_gates(gates: Tensor, routes: Tensor | None) -> None:
    if routes is None or gates.shape != routes.shape:
        raise DataError(
            f"`gates` must have the shape of `routes`, {None if routes is None else list(routes.shape)}, got "
            f"{list(gates.shape)}"
        )
    wrong = (routes >= 0) & ~((gates >= 0) & (gates < torch.inf))
    if wrong.any():
        raise DataError(
            f"`gates` must be finite and not negative where there are routes, got {int(wrong.sum())} that are not"
        )
