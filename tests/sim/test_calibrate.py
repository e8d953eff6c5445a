"""The noise of the head beside that of the router, fitted to a mismatch of two engines."""

import pytest
import torch

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import build, read
from firstorder.sim.config import Numerics, Sim
from firstorder.sim.exact.measure import measure
from firstorder.sim.trials.calibrate import calibrate, mismatch

CHAIN = {
    "world": "graph",
    "task": "chain",
    "vocab": 8,
    "right": 2,
    "recovery": 1,
    "prompts": 2,
    "horizon": 64,
    "width": 8,
}
SEEDS = torch.arange(16)


def test_the_head_s_noise_is_found_beside_the_router_s():
    sim, made = Sim(**CHAIN), Numerics(kind="noise", router_scale=0.1, expert_scale=0.0, head_scale=0.2)
    divergence, rate = (float(x.mean()) for x in mismatch(sim.model_copy(update={"numerics": made}), SEEDS))
    found = calibrate(sim, SEEDS, wanted_kl=divergence, wanted_flips=rate, beside="head")
    assert max(abs(gap) for gap in found.residuals) < 0.05
    assert found.expert_scale == 0.0
    assert (found.router_scale, found.head_scale) == pytest.approx((0.1, 0.2), rel=0.1)
    assert found.numerics == Numerics(
        kind="noise", router_scale=found.router_scale, expert_scale=0.0, head_scale=found.head_scale
    )


def test_the_mismatch_of_a_fresh_engine_is_what_measure_says():
    sim = Sim(numerics=Numerics(kind="noise", fresh=True), draws=3, horizon=3)
    divergence, rate = mismatch(sim, torch.tensor([0]))
    result = measure(build(Recipe, read("minirl")), sim)
    assert (float(divergence), float(rate)) == pytest.approx((result["kl_mu_old"], result["flip_rate"]), rel=1e-12)
