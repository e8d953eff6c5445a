"""How good an estimate of a gradient the update of one minibatch is.

û is the update of a minibatch of n responses, u its expectation, V = E‖û - u‖² = v/n its variance, g the gradient that
it stands for. A recipe's update has a scale of its own, which the learning rate takes up, so that it is compared at the
scale c = ⟨u, g⟩ / ‖u‖² that brings its expectation closest to g:

    E‖c û - g‖² = ‖c u - g‖² + c² V        mse = bias + variance, in the square of the unit of g

**Progress.** To first order a step η û gains η ⟨û, g⟩, and a penalty ‖η û‖² / 2 keeps it short. The best η gains

    max_η E[η ⟨û, g⟩ - η² ‖û‖² / 2] = ⟨u, g⟩² / 2 (‖u‖² + v/n)

and that of exact gradients, û = g, gains ‖g‖² / 2. Their ratio is the *progress*

    p(n) = ⟨u, g⟩² / (‖g‖² (‖u‖² + v/n)) = cos² / (1 + v / (n ‖u‖²))

whatever the scale; 0 where ⟨u, g⟩ < 0. It rises with n up to its ceiling cos² of the angle of u and g, so that

    n(p) = v / (⟨u, g⟩² / (p ‖g‖²) - ‖u‖²)

responses make a progress of p, and no number of them does where p is the ceiling or above.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .fit import compare


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What one minibatch's update is worth against a gradient g; all but `responses` in the square of the unit of g.

    Args:
        alignment: ⟨u, g⟩.
        square: ‖u‖².
        target: ‖g‖².
        bias: min_c ‖c u - g‖².
        bias_raw: ‖u - g‖².
        variance_raw: V, the trace of the covariance of û.
        responses: of a minibatch, n.
    """

    alignment: float
    square: float
    target: float
    bias: float
    bias_raw: float
    variance_raw: float
    responses: int

    @property
    def scale(self) -> float:
        """c, 0 where u is 0."""
        return self.alignment / self.square if self.square > 0 else 0.0

    @property
    def variance(self) -> float:
        """c² V."""
        return self.scale**2 * self.variance_raw

    @property
    def mse(self) -> float:
        """E‖c û - g‖²."""
        return self.bias + self.variance

    @property
    def mse_raw(self) -> float:
        """E‖û - g‖²."""
        return self.bias_raw + self.variance_raw

    @property
    def ceiling(self) -> float:
        """The progress of ever more responses, a share of that of exact gradients."""
        return self._share(0.0)

    @property
    def progress(self) -> float:
        """The progress of one minibatch, a share of that of exact gradients."""
        return self._share(self.variance_raw)

    @property
    def best_step(self) -> float:
        """The η of that progress: ⟨u, g⟩ / (‖u‖² + V), where that of exact gradients is 1; 0 where ⟨u, g⟩ < 0."""
        moment = self.square + self.variance_raw
        return max(self.alignment, 0.0) / moment if moment > 0 else 0.0

    def stepped(self, step: float) -> float:
        """The progress of a step η as it is, below 0 where it is so long that the penalty outweighs what is gained."""
        return (2 * step * self.alignment - step**2 * (self.square + self.variance_raw)) / self.target

    def responses_for(self, progress: float) -> float:
        """n(p); inf where its bias keeps it from ever getting there, 0 for no progress."""
        if progress <= 0:
            return 0.0
        if self.alignment <= 0 or progress >= self.ceiling:
            return math.inf
        room = self.alignment**2 / (progress * self.target) - self.square
        return self.variance_raw * self.responses / room if room > 0 else math.inf

    def _share(self, variance: float) -> float:
        moment = self.square + variance
        return max(self.alignment, 0.0) / moment * max(self.alignment, 0.0) / self.target if moment > 0 else 0.0


def accuracy(u: Tensor, g: Tensor, variance: float, responses: int) -> Accuracy:
    """The accuracy of an update of expectation `u` `[P]` and a variance, against `g` `[P]`, which is not 0."""
    fit, target = compare(u[None], g[None]), float(g.square().sum())
    return Accuracy(
        alignment=float(u @ g),
        square=float(u.square().sum()),
        target=target,
        bias=float(fit.error) ** 2 * target,
        bias_raw=float(fit.raw) ** 2 * target,
        variance_raw=variance,
        responses=responses,
    )
