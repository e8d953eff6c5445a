"""TokenStats: all that a token weight may look at.

Shapes: `...` any leading axes (an ensemble), B responses, T token positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from firstorder.core.errors import DataError, NotFiniteError

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
        kl_mu: `[..., B, T]` nats, KL(μ_old(·|c_t) ‖ π_θ(·|c_t)); needed by `max_kl` and `mean_kl`.
        router_shift: `[..., B, T]` nats, mean over layers and selected experts of
            |log router_θ - log router_old|; needed by `ratio.router_floor`.
        rewards: `[..., B]`; no weight reads them, only the diagnostics that ask for them.

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
    rewards: Tensor | None = None

    def __post_init__(self) -> None:
        _check_shapes(self)
        if type(self.logp_theta) is not Tensor:
            return  # the tensors of a dry run have shapes and no values
        for name in ("logp_mu", "logp_old", "logp_theta"):
            check_log_probs(name, getattr(self, name), self.mask)
        _check_values(self)

    @property
    def token_advantage(self) -> Tensor:
        """The advantage broadcast to `[..., B, T]`."""
        return self.advantage if self.advantage.ndim == self.logp_theta.ndim else self.advantage[..., None]

    @property
    def lengths(self) -> Tensor:
        """Response tokens of each response, `[..., B]`, at least 1 so that it can divide."""
        return self.mask.sum(-1).clamp(min=1)

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


def real(x: Tensor) -> Tensor:
    """The same numbers in a dtype that has means and spreads: integers, bools and half floats as float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def check_log_probs(name: str, logp: Tensor, mask: Tensor) -> None:
    """Refuse what is no log-probability on the mask, or is stored too coarsely to make a ratio of.

    `logp_mu` must be finite as well: what was sampled had a probability.

    Raises:
        DataError: naming the dtype, or how many values are wrong and where the first is.
        NotFiniteError: the same, of the policy that is trained.
    """
    if logp.dtype not in LOG_PROB_DTYPES:
        raise DataError(
            f"`{name}` must be float32 or float64, got {str(logp.dtype).removeprefix('torch.')}, whose rounding is as "
            "large as the log-ratios themselves; compute log-probs from float32 logits and keep them in float32"
        )
    seen = torch.where(mask, logp.detach(), -1.0)
    lowest = -torch.finfo(logp.dtype).max if name == "logp_mu" else -torch.inf
    rule, remedy = _RULES[name == "logp_mu"]
    try:
        check_all((seen <= 0) & (seen >= lowest), seen, f"`{name}` must be {rule}", remedy)
    except DataError as error:
        raise (NotFiniteError(str(error)) if name == "logp_theta" else error) from None


def check_rewards_finite(rewards: Tensor) -> None:
    """Refuse rewards that are NaN or infinite.

    Raises:
        DataError: with their number and where the first is.
    """
    check_all(rewards.isfinite(), rewards, "`rewards` must be finite", "; check the verifier of the task")


def check_all(right: Tensor, x: Tensor, rule: str, remedy: str = "") -> None:
    """Refuse values unless all are right, saying how many are not and where the first is.

    Args:
        right: bool, of the shape of `x`.
        x: the values.
        rule: the beginning of the sentence, with the name and what must hold.
        remedy: its end.

    Raises:
        DataError: with the count, the first wrong value and its index.
    """
    if not right.all():
        wrong = (~right).nonzero()
        first = wrong[0].tolist()
        value, verb = float(x[tuple(first)]), "is" if len(wrong) == 1 else "are"
        raise DataError(f"{rule}, got {len(wrong)} that {verb} not, the first {value:g} at {first}{remedy}")


_RULES = (
    (
        "at most 0 (nats) and no NaN where `mask` is True",
        "; the trained weights have run away: lower optimizer.lr or bound the ratio with correction or clip",
    ),
    ("finite and at most 0 (nats) where `mask` is True", "; check the log-probs of the rollout engine"),
)
"""What holds of log-probs and the remedy, for those of π and for those of μ."""


def _check_shapes(s: TokenStats) -> None:
    whole = tuple(s.logp_theta.shape)
    if len(whole) < 2 or 0 in whole:
        raise DataError(f"`logp_theta` must be [..., batch, token] with at least one of each, got {list(whole)}")
    expected = dict.fromkeys(("logp_old", "logp_mu", "mask", "kl_mu", "router_shift"), whole)
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


def _check_values(s: TokenStats) -> None:
    a = torch.where(s.mask, s.token_advantage, 0.0)
    check_all(a.isfinite(), a, "`advantage` must be finite", "; check rewards and critic")
    for name in ("kl_mu", "router_shift"):
        distance: Tensor | None = getattr(s, name)
        if distance is not None:
            x = torch.where(s.mask, distance, 0.0)
            check_all(x >= (0 if name == "router_shift" else -torch.inf), x, f"`{name}` must be a distance and no NaN")
