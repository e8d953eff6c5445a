"""Two knobs, the noise of the router and that of the experts or of the head, fitted to a published mismatch of engines.

The mismatch of a policy is its exact KL(μ_old ‖ π_old) per response token and its exact flip rate, both on μ_old's
prefixes. Published for Qwen3-30B-A3B with FP8 rollouts (arXiv 2510.11370): 1.5e-3 nats and about 10% of the routes.

Every flip costs nats, so that a flip rate has a least KL, which no knob is below. What is missing above it the noise of
the head adds without a flip, that of the experts with few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firstorder.core.routing import flips
from firstorder.core.threads import sized
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Numerics, Sim
from firstorder.sim.exact.edges import kl
from firstorder.sim.exact.scene import Mode, build, engines, grow
from firstorder.sim.exact.size import count
from firstorder.sim.model.chunks import numbers

PUBLISHED_KL = 1.5e-3  # nats a token
PUBLISHED_FLIPS = 0.10  # of (token, layer)
SMALLEST, LARGEST = math.log(1e-4), math.log(3.0)  # log noise scales that are tried
Knob = Literal["expert", "head"]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The fitted knobs, and the mismatch that they give beside the one that was wanted."""

    router_scale: float
    expert_scale: float
    kl: float
    flip_rate: float
    wanted_kl: float
    wanted_flip_rate: float
    head_scale: float = 0.0

    @property
    def residuals(self) -> tuple[float, float]:
        """log(KL / wanted) and log(flip rate / wanted): 0 where the fit is exact."""
        return math.log(self.kl / self.wanted_kl), math.log(self.flip_rate / self.wanted_flip_rate)

    @property
    def numerics(self) -> Numerics:
        """The engine that was found."""
        return Numerics(
            kind="noise",
            router_scale=self.router_scale,
            expert_scale=self.expert_scale,
            head_scale=self.head_scale,
        )


def mismatch(sim: Sim, seeds: Tensor, mode: Mode = "disabled", draws: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """KL(μ_old ‖ π_old) in nats a response token with π_old replaying as `mode` says, and the flip rate of live routes,
    at the start of training; `[M]` each. The noise of the engines is that of `draws`, as of training of `seeds`."""
    pair = engines(sim, seeds if draws is None else draws)
    with torch.no_grad():
        scene = build(sim, grow(sim), pair, starting_weights(sim, seeds), modes=[mode])
    share, (logp, routes) = scene.share, scene.calls
    flipped = flips(scene.old["disabled"].routes.contexts[:, None], routes).double().mean((1, -1))
    divergence = kl(logp, scene.old[mode].logp[:, None]).mean(1)
    return (share * divergence).sum(-1), (share * flipped).sum(-1)


@sized(lambda sim, seeds, **_: numbers(len(seeds) * count(sim), sim.width))
def calibrate(
    sim: Sim,
    seeds: Tensor,
    *,
    wanted_kl: float,
    wanted_flips: float,
    mode: Mode = "disabled",
    beside: Knob = "expert",
    draws: Tensor | None = None,
) -> Calibration:
    """Find the noise that gives a mismatch on average over policies.

    Minimises the squared residuals of log KL and log flip rate over the two log scales, by Nelder-Mead: flips are
    steps, so there is no gradient. Where no pair of knobs gives both numbers the residuals say by how much they miss.

    Args:
        sim: sizes and cold start; its `numerics` are what is looked for.
        seeds: int64 `[M]`, the policies averaged over.
        wanted_kl: nats a response token, positive.
        wanted_flips: share of (token, layer), positive.
        mode: the replay that π_old had when the KL was taken.
        beside: whose noise is fitted beside the router's; the other has none.
        draws: int64 `[M]`, of the noise of their engines: `seeds` unless given, as in training; a measurement has 0.
    """

    from scipy import optimize  # here, since it takes as long to import as half of torch

    def measured(knobs: NDArray[np.float64]) -> tuple[float, float]:
        divergence, rate = mismatch(sim.model_copy(update={"numerics": _noise(knobs, beside)}), seeds, mode, draws)
        return float(divergence.mean()), float(rate.mean())

    def loss(knobs: NDArray[np.float64]) -> float:
        divergence, rate = measured(knobs)
        outside = np.square(knobs - np.clip(knobs, SMALLEST, LARGEST)).sum()
        tiny = 1e-12  # without noise there is neither, and no logarithm
        gaps = math.log((divergence + tiny) / wanted_kl), math.log((rate + tiny) / wanted_flips)
        return float(np.square(gaps).sum() + outside)

    start = np.log([[0.1, 0.1], [0.02, 0.1], [0.1, 0.02]])
    options = {"initial_simplex": start, "xatol": 0.01, "fatol": 1e-4, "maxfev": 60}
    optimum = optimize.minimize(loss, start[0], method="Nelder-Mead", options=options)
    found = _noise(optimum.x, beside)
    divergence, rate = measured(optimum.x)
    assert found.router_scale is not None
    assert found.expert_scale is not None
    return Calibration(
        router_scale=found.router_scale,
        expert_scale=found.expert_scale,
        head_scale=found.head_scale,
        kl=divergence,
        flip_rate=rate,
        wanted_kl=wanted_kl,
        wanted_flip_rate=wanted_flips,
    )


def _noise(knobs: NDArray[np.float64], beside: Knob) -> Numerics:
    """The engine at log noise scales of the router and of what is `beside` it."""
    router, other = (float(scale) for scale in np.exp(np.clip(knobs, SMALLEST, LARGEST)))
    expert, head = (other, 0.0) if beside == "expert" else (0.0, other)
    return Numerics(kind="noise", router_scale=router, expert_scale=expert, head_scale=head)
