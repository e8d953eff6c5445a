"""What a pass of the policy costs, beside its operations at the core's peak and beside all experts on all tokens."""

import pytest
import torch

from firstorder.sim.config import Numerics, Sim
from firstorder.sim.exact import objectives, scene
from firstorder.sim.exact.forward import run
from firstorder.sim.model import policy
from firstorder.sim.model.numerics import arithmetic

TREE = Sim(vocab=5, horizon=6, prompts=4)
TABLES = {
    "1_x_1024": (1, 1024, {"vocab": 8}),
    "1_x_4096": (1, 4096, {"vocab": 8}),
    "1_x_8192_wide": (1, 8192, {"vocab": 16, "width": 32}),
    "16_x_1024": (16, 1024, {"vocab": 8}),
}
EDGE = 512  # of the square matrices whose product is timed for the peak


def products(sim, rows):
    """Floating-point operations of the products that a forward over so many rows of features needs: of K experts."""
    d = sim.width
    layer = d * d + d * sim.experts + 2 * sim.top_k * d * sim.expert_width
    return 2 * rows * (sim.inputs * d + sim.layers * layer + d * sim.vocab)


@pytest.fixture
def everything(monkeypatch):
    """A way to run every expert on every token, as engines do whose products are rounded."""

    def call(function):
        with monkeypatch.context() as patched:
            patched.setattr(policy, "fills", lambda ids, experts: False)
            return function()

    return call


@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_contexts_beside_its_operations_at_the_peak(table, in_turns, everything):
    members, rows, sizes = TABLES[table]
    sim = Sim(task="chain", **sizes)
    leaves = policy.leaves(policy.initial_weights(sim, torch.arange(members)))
    features = torch.randn(rows, sim.inputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    engine = arithmetic(Numerics(kind="exact"), torch.arange(members))
    square = torch.randn(EDGE, EDGE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    operations, times = products(sim, members * rows), 8

    def peak():
        for _ in range(times):
            square @ square

    def forward():
        with torch.no_grad():
            return policy.step(policy.load(leaves, engine, sim), None, features, torch.arange(rows)).logp

    def gradient():
        done = policy.step(policy.load(leaves, engine, sim), None, features, torch.arange(rows))
        return policy.gradient(done.logp[..., 0].sum(), leaves)

    torch.testing.assert_close(everything(forward), forward(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(everything(gradient), gradient(), rtol=1e-12, atol=1e-10)
    at_peak = 2 * EDGE**3 * times
    in_turns(rounds=9, scale=at_peak / operations, peak=peak, **{f"forward_of_{table}": forward})
    in_turns(
        rounds=9,
        scale=at_peak / (3 * operations),  # a backward has two products for each of the forward's
        peak=peak,
        **{f"gradient_of_{table}": gradient, f"gradient_of_{table}_all_experts": lambda: everything(gradient)},
    )


def test_the_tree_beside_all_experts_on_all_tokens(in_turns, everything):
    tree = scene.grow(TREE)
    pair = scene.engines(TREE, torch.tensor([0]))
    leaves = policy.leaves(policy.initial_weights(TREE, torch.tensor([0])))

    def gradient():
        done = run(policy.load(leaves, pair.pi, TREE), tree)
        return policy.gradient(objectives.value(done.logp, tree).sum(), leaves)

    torch.testing.assert_close(everything(gradient), gradient(), rtol=1e-10, atol=1e-14)
    in_turns(rounds=9, tree_by_chosen_experts=gradient, tree_by_all_experts=lambda: everything(gradient))
