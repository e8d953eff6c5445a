"""Sums by doubling against the recursions over time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.sim.config import Sim
from firstorder.sim.exact import graph
from firstorder.sim.exact.blocks import block_sums
from firstorder.sim.exact.graph import Graph
from firstorder.sim.exact.scene import grow
from firstorder.sim.tasks import doubling

TASKS = {
    "cut": {"positions": 3, "recovery": 1},
    "lost for good": {"positions": 4},
    "answers": {"positions": 3, "ending": "answer", "thinking": 1},
    "graded answers": {"positions": 3, "ending": "answer", "reward": "graded"},
    "feedback": {"positions": 2, "recovery": 1, "feedback": True, "turn_length": 3},
}


def worlds(horizon, monkeypatch, **changes):
    """The same world twice, with sums by doubling and by recursion."""
    sim = Sim(world="graph", task="chain", vocab=8, prompts=3, horizon=horizon, **changes)
    monkeypatch.setattr(doubling, "COST", 0)
    fast, slow = grow(sim), grow(sim)
    assert isinstance(fast, Graph)
    assert fast.doubled is not None
    slow.__dict__["doubled"] = None
    return fast, slow


def kernels(world, count, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 2, world.contexts, world.vocab)
    return (2 * torch.randn(shape, dtype=torch.float64, generator=generator)).softmax(-1)


@pytest.mark.parametrize("horizon", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("name", TASKS)
def test_doubling_sums_what_the_recursion_sums(monkeypatch, name, horizon):
    changes = TASKS[name]
    horizon = max(horizon, changes.get("turn_length", 1))
    if changes.get("ending") == "answer":
        horizon = max(horizon, changes["positions"])
    fast, slow = worlds(horizon, monkeypatch, **changes)
    before, after = kernels(fast, 2, 0)
    worth = torch.rand(2, 3, len(fast.levels), fast.prompts, dtype=torch.float64)
    for one, other in (
        (fast.earned(before), slow.earned(before)),
        (fast.through(before, after, worth), slow.through(before, after, worth)),
        (fast.through(before, before, worth), slow.through(before, before, worth)),
        (fast.visits(before), slow.visits(before)),
        (fast.log_mass(1.5 * before), slow.log_mass(1.5 * before)),
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-300)


@settings(max_examples=30)
@given(st.integers(1, 300), st.integers(0, 9))
def test_every_horizon_is_come_to(horizon, seed):
    generator = torch.Generator().manual_seed(seed)
    before, after = torch.rand(2, 2, 3, 3, dtype=torch.float64, generator=generator) / 2
    start, worth = (torch.rand(2, *shape, dtype=torch.float64, generator=generator) for shape in ((3,), (1, 3)))
    now, values, came = start, [worth[:, 0]], torch.zeros_like(start)
    for _ in range(horizon):
        values.append((after @ values[-1][..., None])[..., 0])
    total = torch.zeros(2, 3, 3, dtype=torch.float64)
    for t in range(horizon):
        total = total + now[:, :, None] * values[horizon - 1 - t][:, None]
        came, now = came + now, (now[:, None] @ before)[:, 0]
    torch.testing.assert_close(doubling.between(before, after, start, worth, horizon)[:, 0], total)
    torch.testing.assert_close(doubling.came(before, start, horizon), came)
    torch.testing.assert_close(doubling.ahead(after, worth.transpose(1, 2), horizon)[..., 0], values[-1])


def test_a_mass_beyond_float64_has_a_logarithm():
    kernel = 3.0 * torch.eye(2, dtype=torch.float64)[None]
    start = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    found = doubling.log_ahead(kernel, start, 10_000)
    assert found.item() == pytest.approx(10_000 * math.log(3.0), rel=1e-12)
    assert doubling.log_ahead(kernel / 9, start, 10_000).item() == pytest.approx(-10_000 * math.log(3.0), rel=1e-12)


def test_prompts_that_share_contexts_and_short_responses_have_no_blocks():
    world = grow(Sim(world="graph", task="chain", vocab=8, prompts=2, positions=4, horizon=8))
    assert block_sums(world.table, 8) is None
    assert block_sums(world.table, 8 * doubling.COST + 1) is not None
    place = world.branches.place.clone()
    place[0, 0] = world.contexts - 1  # of another prompt
    assert doubling.blocks(place, 2, world.contexts, 0, 1000) is None
    assert graph.block_sums is block_sums
