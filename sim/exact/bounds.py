"""Bounds on the error of the first-order expansion, published ones and derived, and how tight each is.

All bound |J(π) - J(μ) - E_μ[R Σ_t (ρ_t - 1)]| for a horizon T without discount and R in [0, 1]. Published constants
for |R| ≤ 1 halve here, since 1/2 can be subtracted from R. With TV_t and KL_t the divergences between π and μ at
step t, in nats:

    ε = max TV,   δ = max KL(μ‖π),   D_t = E_μ TV_t,   K_t = E_μ KL_t.

Shapes: M members, N contexts, V vocabulary, T horizon.

Reference:
    Trust Region Masking, arXiv 2512.23075; DPPO, arXiv 2602.04879; TRPO, arXiv 1502.05477 theorem 1; CPO, arXiv
    1705.10528 corollary 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .bounds_advantage import extremes
from .edges import kl
from .objectives import Values, values
from .scene import Mode, Scene
from .world import World


@dataclass(frozen=True, kw_only=True)
class Apart:
    """How far two policies are apart, p the one that expectations are under; KL is KL(p‖q), nats.

    Args:
        horizon: T.
        most_tv, most_kl: the largest over contexts, `[M]`.
        tv, kl: the mean under p of every step, `[M, T]`; contexts that a response no longer reaches count zero.
    """

    horizon: int
    most_tv: Tensor
    most_kl: Tensor
    tv: Tensor
    kl: Tensor


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """What is known of a first-order expansion around μ, `[M]` each but for `apart`.

    Args:
        apart: μ against π.
        advantage: max |A^μ_t(c, a)| over steps, contexts and tokens.
        drift: max |E_{a~π} A^μ_t(c, a)|.
        start: J(μ).
        slope: L' = E_μ[R Σ_t (ρ_t - 1)].
    """

    apart: Apart
    advantage: Tensor
    drift: Tensor
    start: Tensor
    slope: Tensor

    @property
    def steps(self) -> Tensor:
        """t = 1, ..., T, float64."""
        return torch.arange(1, self.apart.horizon + 1, dtype=torch.float64)


Bound = Callable[[Expansion], Tensor]


def classical(of: Expansion) -> Tensor:
    """T (T - 1) ε²; arXiv 2512.23075, from Kakade and Langford 2002."""
    return of.apart.horizon * (of.apart.horizon - 1) * of.apart.most_tv.square()


def pinsker_marginal(of: Expansion) -> Tensor:
    """2 min(1, √(δ/2)) Σ_t min(1, √((t-1) δ/2)); arXiv 2512.23075."""
    delta = of.apart.most_kl
    return 2 * _capped(root(delta / 2)) * _capped(root((of.steps - 1) * delta[:, None] / 2)).sum(-1)


def mixed(of: Expansion) -> Tensor:
    """2 T min(1, √(δ/2)) min(1, √(K/2)), K = Σ_t K_t; arXiv 2512.23075."""
    most, whole = (_capped(root(kl / 2)) for kl in (of.apart.most_kl, of.apart.kl.sum(-1)))
    return 2 * of.apart.horizon * most * whole


def coupling(of: Expansion) -> Tensor:
    """2 min(1, ε) Σ_t min(1, (t-1) ε); arXiv 2512.23075."""
    eps = of.apart.most_tv
    return 2 * _capped(eps) * _capped((of.steps - 1) * eps[:, None]).sum(-1)


def adaptive(of: Expansion) -> Tensor:
    """2 Σ_t D_t min(1, (T-t) ε, √((T-t) δ/2)); arXiv 2512.23075."""
    left = of.apart.horizon - of.steps
    eps, delta = of.apart.most_tv[:, None], of.apart.most_kl[:, None]
    return 2 * (of.apart.tv * _capped(torch.minimum(left * eps, root(left * delta / 2)))).sum(-1)


def linear(of: Expansion) -> Tensor:
    """2 Σ_t D_t; arXiv 2602.04879."""
    return 2 * of.apart.tv.sum(-1)


def halved(of: Expansion) -> Tensor:
    """Σ_t D_t: the linear bound at half its constant (derived, docs/theory.md)."""
    return of.apart.tv.sum(-1)


def trpo(of: Expansion) -> Tensor:
    """4 ε max|A^μ| Σ_t (1 - (1 - ε)^(t-1)); arXiv 1502.05477 lemma 3, summed over T steps without discount."""
    eps = of.apart.most_tv[:, None]
    return 4 * eps[:, 0] * of.advantage * (1 - (1 - eps) ** (of.steps - 1)).sum(-1)


def cpo(of: Expansion) -> Tensor:
    """2 max|E_π A^μ| Σ_t (T - t) D_t; arXiv 1705.10528 corollary 1, over T steps without discount."""
    return 2 * of.drift * ((of.apart.horizon - of.steps) * of.apart.tv).sum(-1)


def reach(of: Expansion) -> Tensor:
    """max(|J(μ) + L'|, |1 - J(μ) - L'|): all that 0 ≤ J(π) ≤ 1 leaves open."""
    ahead = of.start + of.slope
    return torch.maximum(ahead.abs(), (1 - ahead).abs())


BOUNDS: Mapping[str, Bound] = {
    "classical": classical,
    "pinsker_marginal": pinsker_marginal,
    "mixed": mixed,
    "coupling": coupling,
    "adaptive": adaptive,
    "linear": linear,
    "halved": halved,
    "trpo": trpo,
    "cpo": cpo,
    "reach": reach,
}
"""Every bound by its name."""


def bounds(scene: Scene, mode: Mode) -> dict[str, Tensor]:
    """Every bound on `Values.error` of a target, `[M]` in units of reward.

    Args:
        scene: the engines on a world.
        mode: whose target.
    """
    found = expansion(scene, mode, values(scene, mode))
    return {name: bound(found) for name, bound in BOUNDS.items()}


def expansion(scene: Scene, mode: Mode, found: Values) -> Expansion:
    """What the bounds read of a target whose values are known."""
    pi, mu, world = scene.target[mode].logp.detach(), scene.mu_old.logp, scene.world
    advantage, drift = extremes(world, mu.exp(), pi.exp())
    return Expansion(
        apart=apart(mu, pi, world),
        advantage=advantage,
        drift=drift,
        start=found.j_mu,
        slope=found.j_seq - found.j_mu - found.error,
    )


def apart(p: Tensor, q: Tensor, world: World) -> Apart:
    """How far apart two policies with edge log-probs `[M, N, V]` are."""
    each = torch.stack([total_variation(p, q), kl(p, q)])
    most, (tv, divergence) = each.amax(-1), world.by_step(p.exp(), each)
    return Apart(horizon=world.horizon, most_tv=most[0], most_kl=most[1], tv=tv, kl=divergence)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """TV of two arrays of log-probs over the last axis."""
    return 0.5 * (p.exp() - q.exp()).abs().sum(-1)


def root(x: Tensor) -> Tensor:
    """√x, whose slope at 0 is 0 and not infinite."""
    some = x > 0
    return torch.where(some, x, 1.0).sqrt() * some


def _capped(x: Tensor) -> Tensor:
    return x.clamp(max=1.0)
