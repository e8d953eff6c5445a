"""A learned baseline: the value of a context, advantages made from it, and what it is trained on.

V(c_t) estimates E_μ[R | c_t], the reward still to come at the context of response token t. Without discount, and with
one reward after the last response token,

    d_t = V(c_{t+1}) - V(c_t),   R - V(c_t) at the last token
    A_t = Σ_{l≥0} λ^l d_{t+l} = G_t - V(c_t)
    G_t = (1 - λ) V(c_{t+1}) + λ G_{t+1},   R after the last token

t counts response tokens only: prompt, environment and padding tokens, whose mask is False, are stepped over. λ = 1
leaves R - V(c_t), a baseline; below 1 a value stands in for a part of the reward, and its error enters the update
(docs/theory.md).

Shapes: `...` any leading axes (an ensemble), B responses, L positions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from firstorder.core.quantities import Moments, Quantity

QUANTITIES: dict[str, Quantity] = {
    "critic/vf_loss": Quantity(
        formula="mean of (V - G)^2 / 2 over response tokens, mean over the step's updates",
        unit="reward^2",
        source="verl critic/vf_loss, unclipped",
    ),
    "critic/vf_explained_var": Quantity(
        formula="1 - Var(G - V) / Var(G) over response tokens, V before the step's updates",
        unit="1",
        source="verl critic/vf_explained_var, without its 1e-5",
    ),
}


def lambda_returns(values: Tensor, rewards: Tensor, mask: Tensor, lam: float) -> Tensor:
    """G_t, the λ-return: what a response earns from token t on, and what V(c_t) is trained on.

    Args:
        values: `[..., B, L]`, V(c_t) in units of reward; read on the mask only.
        rewards: `[..., B]`.
        mask: bool `[..., B, L]`, True on response tokens; it may have holes.
        lam: λ in [0, 1]; 1 returns R, 0 the value of the next context.

    Returns:
        `[..., B, L]`, 0 off the mask.

    Example:
        >>> values, mask = torch.tensor([[9.0, 0.25, 0.5]]), torch.tensor([[False, True, True]])
        >>> lambda_returns(values, torch.ones(1), mask, lam=0.5).tolist()
        [[0.0, 0.75, 1.0]]
    """
    later = value = rewards.to(values).expand(values.shape[:-1])  # G and V of the next response token
    returns = torch.zeros_like(values)
    for t in reversed(range(values.shape[-1])):
        on = mask[..., t]
        later = torch.where(on, value.lerp(later, lam), later)
        value = torch.where(on, values[..., t], value)
        returns[..., t] = torch.where(on, later, 0.0)
    return returns


def gae(values: Tensor, rewards: Tensor, mask: Tensor, lam: float) -> Tensor:
    """A_t = Σ_l λ^l d_{t+l} = G_t - V(c_t), generalised advantage estimation with γ = 1; arguments as `lambda_returns`.

    Reference:
        Schulman et al. 2016, arXiv 1506.02438 eq. (16).
    """
    return torch.where(mask, lambda_returns(values, rewards, mask, lam) - values, 0.0)


def value_loss(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """½ mean over response tokens of (V(c_t) - G_t)²; `[...]`, in units of reward squared.

    A term of its own beside the surrogate: G carries no gradient, and V hangs on parameters that the policy does not
    have.

    Args:
        values: `[..., B, L]`; carries the gradient.
        returns: `[..., B, L]` from `lambda_returns`.
        mask: bool `[..., B, L]`.
    """
    square = torch.where(mask, values - returns.detach(), 0.0).square()
    return square.sum((-2, -1)) / (2 * mask.sum((-2, -1)).clamp(min=1))


def value_moments(values: Tensor | None, returns: Tensor | None, mask: Tensor) -> Moments:
    """The sums over response tokens that the explained variance is made of, `[...]` each; none without a critic."""
    if values is None or returns is None:
        return {}
    returns = returns.double()  # a variance is the difference of two sums of squares
    terms = {"vf_left": returns - values, "vf_return": returns}
    terms |= {f"{name}_square": x.square() for name, x in terms.items()}
    tokens = mask.sum((-2, -1)).to(returns)
    return {name: (torch.where(mask, x, 0.0).sum((-2, -1)), tokens) for name, x in terms.items()}


def explained_variance(reduced: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`critic/vf_explained_var` from means, after any reduction; nothing where no critic was scored.

    1 is a perfect prediction, 0 that of a constant; returns that do not vary leave it undefined, NaN or -inf.
    """
    m = reduced
    if "vf_return" not in m:
        return {}
    left, total = (m[f"{name}_square"] - m[name].square() for name in ("vf_left", "vf_return"))
    rounding = 16 * torch.finfo(total.dtype).eps * m["vf_return_square"]  # what a difference that should be 0 leaves
    return {"critic/vf_explained_var": 1 - left / torch.where(total > rounding, total, 0.0)}
