import pytest
import torch

from firstorder.sim.config import Sim
from firstorder.sim.exact import coherence
from firstorder.sim.exact.coherence import begin, bias, follow
from firstorder.sim.exact.edges import entropy_gradient
from firstorder.sim.exact.fit import compare
from firstorder.sim.exact.scene import build, engines, grow
from firstorder.sim.model.policy import initial_weights

EXACT = {"rtol": 1e-12, "atol": 1e-14}


def vectors(count, members=3, size=5):
    return torch.randn(count, members, size, generator=torch.Generator().manual_seed(count), dtype=torch.float64)


def walked(biases):
    trail = begin(*biases.shape[1:])
    for b in biases:
        trail, found = follow(trail, b)
    return found


def test_a_bias_that_never_turns_is_wholly_coherent():
    found = walked(torch.stack([scale * vectors(1)[0] for scale in (1.0, 0.1, 3.0)]))
    torch.testing.assert_close(found["exact/bias_cosine"], torch.ones(3, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(found["exact/bias_coherence"], torch.ones(3, dtype=torch.float64), **EXACT)


def test_coherence_is_the_discounted_sum_over_the_discounted_norms():
    biases = vectors(4)
    share = coherence.MEMORY ** torch.arange(3, -1, -1, dtype=torch.float64)
    above = (share[:, None, None] * biases).sum(0).norm(dim=-1)
    below = (share[:, None] * biases.norm(dim=-1)).sum(0)
    found = walked(biases)
    torch.testing.assert_close(found["exact/bias_coherence"], above / below, **EXACT)
    torch.testing.assert_close(found["exact/bias_cosine"], coherence.cosine(biases[-1], biases[-2]), **EXACT)


def test_opposite_biases_cancel():
    b = vectors(1)[0]
    found = walked(torch.stack([coherence.MEMORY**-1 * b, -b]))
    assert found["exact/bias_coherence"].abs().max() < 1e-15
    torch.testing.assert_close(found["exact/bias_cosine"], -torch.ones(3, dtype=torch.float64), **EXACT)


def test_the_bias_is_what_no_step_size_removes():
    u, g = vectors(2)
    b = bias(u, g)
    torch.testing.assert_close((b * u).sum(-1), torch.zeros(3, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(b.norm(dim=-1) / g.norm(dim=-1), compare(u, g).error, **EXACT)


def test_no_bias_and_no_update_are_no_direction():
    nothing = torch.zeros(1, 3, dtype=torch.float64)
    _, found = follow(begin(1, 3), nothing)
    assert found["exact/bias_cosine"].tolist() == found["exact/bias_coherence"].tolist() == [0.0]
    torch.testing.assert_close(bias(nothing, nothing + 2.0), nothing - 2.0, **EXACT)


@pytest.mark.parametrize("name", ["head", "router", "embed"])
def test_the_gradient_of_the_entropy_is_its_slope(name):
    sim = Sim(horizon=3, prompts=2)
    seeds = torch.tensor([4])
    tree = grow(sim)
    weights = initial_weights(sim, seeds)
    scene = build(sim, tree, engines(sim, seeds), weights, modes=[])
    found = entropy_gradient(scene.target["disabled"], scene.share, scene.weights)
    start = sum(w.numel() for w in list(weights.values())[: list(weights).index(name)])
    h, at = 1e-5, 3

    def entropy(shift):
        moved = weights[name].flatten().clone()
        moved[at] += shift
        there = weights | {name: moved.view_as(weights[name])}
        logp = build(sim, tree, engines(sim, seeds), there, modes=[]).target["disabled"].logp.detach()
        return (share * -(logp.exp() * logp).sum(-1)).sum()

    share = tree.visits(scene.mu_old.logp.exp())
    share = share / share.sum(-1, keepdim=True)
    torch.testing.assert_close(found[0, start + at], (entropy(h) - entropy(-h)) / (2 * h), rtol=1e-6, atol=1e-10)
