"""TokenStats: all that a token weight may look at.

Shapes: `...` any leading axes (an ensemble), B responses, T token positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor

from firstorder.core.errors import DataError, NotFiniteError

LOG_PROBS = ("logp_mu", "logp_old", "logp_theta")
LOG_PROB_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True, kw_only=True)
class TokenStats:
    """Log-probabilities, advantages and masks of one batch, under every policy that a weight names.

    Args:
        logp_theta: `[..., B, T]` nats, log π_θ(y_t | c_t) of the recipe's own (replayed) target.
        logp_old: `[..., B, T]` nats, log π_old under the same routes as `logp_theta`.
        logp_mu: `[..., B, T]` nats, log μ_old, the policy that was sampled.
        mask: `[..., B, T]` bool, True on response tokens.
        advantage: `[..., B]` or `[..., B, T]`, in units of reward.
        measure: `[..., B]` probability of each response, summing to 1; None for a sampled batch,
            where every response weighs 1/B.
        kl_mu: `[..., B, T]` nats, KL(μ_old(·|c_t) ‖ π_θ(·|c_t)); needed by `rejection.kind = kl`.
        router_shift: `[..., B, T]` nats, mean over layers and selected experts of
            |log router_θ - log router_old|; needed by `ratio.router_floor`.
        logp_ref: `[..., B, T]` nats, log π_ref under the same routes as `logp_theta`; needed by `terms.reference_kl`.
        entropy: `[..., B, T]` nats, of π_θ(·|c_t), with its gradient; needed by `terms.entropy`.
        rewards: `[..., B]`; no weight reads them, only the diagnostics that ask for them.
        turn: int64 `[..., B, T]`, the number of each token's turn from 1 on, at most T; None where the tokens between
            two turns stand in the batch, off the mask, so that a turn is a run of response tokens.

    The leading axes of all are the same. On the mask, log-probs are at most 0 and not NaN; -inf is a probability of 0,
    which μ cannot have sampled; advantages are finite. Off the mask nothing is read.

    Raises:
        DataError: naming the field, the rule and what was got.
    """

    logp_theta: Tensor
    logp_old: Tensor
    logp_mu: Tensor
    mask: Tensor
    advantage: Tensor
    measure: Tensor | None = None
    kl_mu: Tensor | None = None
    router_shift: Tensor | None = None
    logp_ref: Tensor | None = None
    entropy: Tensor | None = None
    rewards: Tensor | None = None
    turn: Tensor | None = None

    def __post_init__(self) -> None:
        check_layout(self)
        if type(self.logp_theta) is not Tensor:
            return  # the tensors of a dry run have shapes and no values
        for rule in rules(self):
            rule.check()

    @property
    def token_advantage(self) -> Tensor:
        """The advantage broadcast to `[..., B, T]`."""
        return self.advantage if self.advantage.ndim == self.logp_theta.ndim else self.advantage[..., None]

    @property
    def lengths(self) -> Tensor:
        """Response tokens of each response, `[..., B]`, at least 1 so that it can divide."""
        return self.mask.sum(-1).clamp(min=1)

    @property
    def turns(self) -> Tensor:
        """The number of each response token's turn, int64 `[..., B, T]`, 0 off the mask."""
        if self.turn is not None:
            return torch.where(self.mask, self.turn, 0)
        before = torch.nn.functional.pad(self.mask, (1, -1))
        return torch.where(self.mask, (self.mask & ~before).cumsum(-1), 0)

    @property
    def weights(self) -> Tensor:
        """How much each response counts, `[..., B]`: its measure, or 1/B in a sampled batch."""
        if self.measure is not None:
            return self.measure
        size = self.logp_theta.shape[-2]
        return self.logp_theta.new_full(self.logp_theta.shape[:-1], 1.0 / size)

    @property
    def counts(self) -> Tensor:
        """How much each response counts in sums that are divided later, `[..., B]`: its measure, or 1 when sampled."""
        return self.logp_theta.new_ones(self.logp_theta.shape[:-1]) if self.measure is None else self.measure

    def with_advantage(self, advantage: Tensor) -> TokenStats:
        """The same tokens under another advantage."""
        return replace(self, advantage=advantage)

    def members(self, cut: slice) -> TokenStats:
        """Some members of an ensemble, the leading axis."""
        tensors = {name: t[cut] for name, t in vars(self).items() if t is not None}
        return replace(self, **tensors)


@dataclass(frozen=True, kw_only=True)
class UnreadStats(TokenStats):
    """The same, whose values nobody has waited for: their device is told what must hold of them (`core.method.rules`).

    Shapes and dtypes are checked at once. `core.training.inside` looks at the values and reads the outcome later.
    """

    def __post_init__(self) -> None:
        check_layout(self)


def real(x: Tensor) -> Tensor:
    """The same numbers in a dtype that has means and spreads: integers, bools and half floats as float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What must hold of every value of a tensor.

    Args:
        name: of the field of `TokenStats`.
        right: bool, where it holds.
        x: the values, of the shape of `right`.
        sentence: the beginning of the refusal, with the name and what must hold.
        remedy: its end.
    """

    name: str
    right: Tensor
    x: Tensor
    sentence: str
    remedy: str = ""

    def check(self) -> None:
        """Wait for the values and refuse them unless all are right; raises as `refuse` does."""
        if not self.right.all():
            wrong = (~self.right).nonzero()
            first = wrong[0].tolist()
            refuse(self.name, self.sentence, self.remedy, len(wrong), first, float(self.x[tuple(first)]))


def refuse(name: str, sentence: str, remedy: str, count: int, first: list[int], value: float) -> NoReturn:
    """Say how many values break a rule, and which is the first.

    Raises:
        NotFiniteError: they are of the policy that is trained.
        DataError: else.
    """
    verb, kind = "is" if count == 1 else "are", NotFiniteError if name == "logp_theta" else DataError
    raise kind(f"{sentence}, got {count} that {verb} not, the first {value:g} at {first}{remedy}")


def rules(stats: TokenStats) -> Iterator[Rule]:
    """All that must hold of the values of a batch; nothing waits for a device."""
    for name in LOG_PROBS:
        yield _log_prob_rule(name, getattr(stats, name), stats.mask)
    if stats.logp_ref is not None:
        yield _log_prob_rule("logp_ref", stats.logp_ref, stats.mask)
    a = torch.where(stats.mask, stats.token_advantage, 0.0)
    yield Rule(
        name="advantage",
        right=a.isfinite(),
        x=a,
        sentence="`advantage` must be finite",
        remedy="; check rewards and critic",
    )
    for name, what in (("kl_mu", "a distance"), ("router_shift", "a distance"), ("entropy", "a number of nats")):
        distance: Tensor | None = getattr(stats, name)
        if distance is not None:
            x = torch.where(stats.mask, distance.detach(), 0.0)
            least = 0 if name == "router_shift" else -torch.inf
            yield Rule(name=name, right=x >= least, x=x, sentence=f"`{name}` must be {what} and no NaN")


def check_log_probs(name: str, logp: Tensor, mask: Tensor) -> None:
    """Refuse what is no log-probability on the mask, or is stored too coarsely to make a ratio of.

    `logp_mu` must be finite as well: what was sampled had a probability.

    Raises:
        DataError: naming the dtype, or how many values are wrong and where the first is.
        NotFiniteError: the same, of the policy that is trained.
    """
    check_dtype(name, logp)
    _log_prob_rule(name, logp, mask).check()


def check_dtype(name: str, logp: Tensor) -> None:
    """Refuse log-probs that are stored too coarsely to make a ratio of.

    Raises:
        DataError: naming the dtype.
    """
    if logp.dtype not in LOG_PROB_DTYPES:
        raise DataError(
            f"`{name}` must be float32 or float64, got {str(logp.dtype).removeprefix('torch.')}, whose rounding is as "
            "large as the log-ratios themselves; compute log-probs from float32 logits and keep them in float32"
        )


def _log_prob_rule(name: str, logp: Tensor, mask: Tensor) -> Rule:
    seen = torch.where(mask, logp.detach(), -1.0)
    lowest = -torch.finfo(logp.dtype).max if name == "logp_mu" else -torch.inf
    rule, remedy = _RULES[name == "logp_mu"]
    right = (seen <= 0) & (seen >= lowest)
    return Rule(name=name, right=right, x=seen, sentence=f"`{name}` must be {rule}", remedy=remedy)


def check_rewards_finite(rewards: Tensor) -> None:
    """Refuse rewards that are NaN or infinite.

    Raises:
        DataError: with their number and where the first is.
    """
    remedy = "; check the verifier of the task"
    right = rewards.isfinite()
    Rule(name="rewards", right=right, x=rewards, sentence="`rewards` must be finite", remedy=remedy).check()


_RULES = (
    (
        "at most 0 (nats) and no NaN where `mask` is True",
        "; the trained weights have run away: lower optimizer.lr or bound the ratio with correction or clip",
    ),
    ("finite and at most 0 (nats) where `mask` is True", "; check the log-probs of the rollout engine"),
)
"""What holds of log-probs and the remedy, for those of π and for those of μ."""


def check_layout(s: TokenStats) -> None:
    """Refuse shapes and dtypes that no batch has; no value is looked at.

    Raises:
        DataError: naming the field and what was got.
    """
    whole = tuple(s.logp_theta.shape)
    if len(whole) < 2 or 0 in whole:
        raise DataError(f"`logp_theta` must be [..., batch, token] with at least one of each, got {list(whole)}")
    named = ("logp_old", "logp_mu", "logp_ref", "mask", "kl_mu", "router_shift", "entropy", "turn")
    expected = dict.fromkeys(named, whole)
    expected |= dict.fromkeys(("measure", "rewards"), whole[:-1])
    for name, shape in expected.items():
        tensor = getattr(s, name)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise DataError(
                f"`{name}` must be {list(shape)} beside a `logp_theta` of {list(whole)}, got {list(tensor.shape)}"
            )
    if tuple(s.advantage.shape) not in (whole, whole[:-1]):
        raise DataError(
            f"`advantage` must be {list(whole[:-1])}, one a response, or {list(whole)}, one a token, "
            f"got {list(s.advantage.shape)}"
        )
    if s.mask.dtype is not torch.bool:
        raise DataError(f"`mask` must be bool, got {s.mask.dtype}")
    for name in LOG_PROBS:
        check_dtype(name, getattr(s, name))
    if s.logp_ref is not None:
        check_dtype("logp_ref", s.logp_ref)
