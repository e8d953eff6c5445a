"""TokenStats: all that a token weight may look at.

Shapes: `...` any leading axes (an ensemble), B responses, T token positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import DataError


@dataclass(frozen=True, kw_only=True)
class TokenStats:
    """Log-probabilities, advantages and masks of one batch, under every policy that a weight names.

    Args:
        logp_theta: `[..., B, T]` nats, log π_θ(y_t | c_t) of the recipe's own (replayed) target.
        logp_old: `[..., B, T]` nats, log π_old under the same routes as `logp_theta`.
        logp_mu: `[..., B, T]` nats, log μ_old, the policy that was sampled.
        mask: `[..., B, T]` bool, True on response tokens.
        advantage: `[..., B]` (or `[..., B, T]`), in units of reward.
        measure: `[..., B]` probability of each response, summing to 1; None for a sampled batch,
            where every response weighs 1/B.
        kl_mu: `[..., B, T]` nats, KL(μ_old(·|c_t) ‖ π_θ(·|c_t)); needed by `max_kl` and `mean_kl`.
        router_shift: `[..., B, T]` nats, mean over layers and selected experts of
            |log router_θ - log router_old|; needed by `ratio.router_floor`.
        rewards: `[..., B]`; no weight reads them, only the diagnostics that ask for them.
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
        for name in ("logp_old", "logp_mu", "mask"):
            if getattr(self, name).shape[-2:] != self.logp_theta.shape[-2:]:
                raise DataError(
                    f"`{name}` must end in [batch, token] = {list(self.logp_theta.shape[-2:])}, "
                    f"got {list(getattr(self, name).shape)}"
                )
        if self.mask.dtype is not torch.bool:
            raise DataError(f"`mask` must be bool, got {self.mask.dtype}")

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
        held = {name: t[cut] for name, t in vars(self).items() if t is not None}
        return replace(self, **held)
