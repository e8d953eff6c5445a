"""How an update compares with a gradient: its error at the best scale and at its own, that scale, and the angle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How an update compares with a gradient, each `[M]`.

    `error` = min_c ‖c u - g‖ / ‖g‖, `scale` that c, `raw` the same with c = 1, `cosine` of the angle.
    """

    error: Tensor
    raw: Tensor
    scale: Tensor
    cosine: Tensor


def compare(u: Tensor, g: Tensor) -> Fit:
    """Compare expected updates `[M, P]` with gradients `[M, P]`.

    Both are first brought near 1 by a power of two, which changes no digit, so that no square is lost below 1e-308.
    """
    power_u, power_g = (torch.frexp(x.abs().amax(-1)).exponent for x in (u, g))
    near = torch.ldexp(u, -power_g[:, None])
    u, g = torch.ldexp(u, -power_u[:, None]), torch.ldexp(g, -power_g[:, None])
    uu, gg, ug = (u * u).sum(-1), (g * g).sum(-1), (u * g).sum(-1)
    scale = torch.where(uu > 0, ug / uu, 0.0)
    norm = gg.sqrt()
    return Fit(
        error=(scale[:, None] * u - g).norm(dim=-1) / norm,
        raw=(near - g).norm(dim=-1) / norm,
        scale=torch.ldexp(scale, power_g - power_u),
        cosine=torch.where(uu > 0, ug / (uu.sqrt() * norm), 0.0),
    )


def fits(u: Tensor, g: Tensor, natural: Tensor) -> dict[str, Tensor]:
    """The named comparisons of one update `[P]` with the gradients of its own and of the natural target."""
    own, other = (compare(u[None], target[None]) for target in (g, natural))
    return {
        "gradient_error": own.error[0],
        "gradient_error_raw": own.raw[0],
        "update_scale": own.scale[0],
        "cosine": own.cosine[0],
        "gradient_error_natural": other.error[0],
        "update_scale_natural": other.scale[0],
        "cosine_natural": other.cosine[0],
        "gradient_norm": g.norm(),
    }
