"""Free policies against brute force, and the search that tries to break a bound."""

import itertools

import pytest
import torch

from firstorder.sim.exact import bounds_free
from firstorder.sim.exact.bounds import BOUNDS, halved
from firstorder.sim.exact.bounds_free import Free, full
from firstorder.sim.exact.bounds_replay import relaxations
from firstorder.sim.exact.bounds_search import (
    KINDS,
    RELAXATIONS,
    SLACK,
    TARGETS,
    Target,
    _policies,
    _rewarded,
    _units,
    search,
)


def free(vocab=3, horizon=3, seed=0):
    shape = full(vocab, horizon)
    return _policies(shape, _units(shape, KINDS, torch.Generator().manual_seed(seed)), torch.arange(KINDS))


def by_hand(of, member):
    """Err and J(pi) - J(mu) of one member, response by response."""
    vocab, horizon = of.pi.shape[-1], of.horizon
    pi, mu, rewards = (x[member].tolist() for x in (of.pi.exp(), of.mu.exp(), of.rewards))
    error = gap = total = 0.0
    for place, response in enumerate(itertools.product(range(vocab), repeat=horizon)):
        context, start, first, second, ratios = 0, 0, 1.0, 1.0, []
        for t, token in enumerate(response):
            first, second = first * pi[start + context][token], second * mu[start + context][token]
            ratios.append(pi[start + context][token] / mu[start + context][token])
            start, context = start + vocab**t, context * vocab + token
        gap += rewards[place] * (first - second)
        error += rewards[place] * (first - second - second * sum(r - 1 for r in ratios))
        total += abs(first - second) / 2
    return error, gap, total


def test_errors_of_free_policies_are_those_of_their_responses():
    of = free()
    for member in range(0, KINDS, 4):
        error, gap, total = by_hand(of, member)
        assert float(bounds_free.error(of)[member]) == pytest.approx(error, abs=1e-10)
        assert float(bounds_free.gap(of)[member]) == pytest.approx(gap, abs=1e-12)
        assert float(bounds_free.sequence_total_variation(of)[member]) == pytest.approx(total, abs=1e-12)


def test_what_bounds_read_of_a_free_policy_adds_up():
    of = free(seed=1)
    found = bounds_free.expansion(of)
    torch.testing.assert_close(bounds_free.gap(of) - found.slope, bounds_free.error(of), rtol=1e-9, atol=1e-12)
    assert set(relaxations(bounds_free.moved(of))) == set(RELAXATIONS)


def test_policies_that_hardly_differ_keep_their_digits():
    of = free(seed=2)
    change = of.pi - of.mu
    near = [
        Free(shape=of.shape, pi=(of.mu + h * change).log_softmax(-1), mu=of.mu, rewards=of.rewards)
        for h in (1e-4, 1e-6)
    ]
    first, second = (bounds_free.error(each) for each in near)
    torch.testing.assert_close(second * 1e4, first, rtol=0.05, atol=1e-13)


def test_the_best_reward_is_better_than_any_other():
    of, target = free(seed=3), TARGETS["error"]["linear"]
    best = bounds_free.error(_rewarded(target, of)).abs()
    for seed in range(20):
        rewards = torch.rand(of.rewards.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        other = Free(shape=of.shape, pi=of.pi, mu=of.mu, rewards=rewards.round() if seed % 2 else rewards)
        assert bool((bounds_free.error(other).abs() <= best + 1e-14).all())


@pytest.mark.parametrize(("of", "name"), [(of, name) for of, names in TARGETS.items() for name in names])
def test_no_bound_is_broken(of, name):
    found = search(TARGETS[of][name], 2, 3, 0, draws=50, steps=6)
    assert 0 < found.ratio <= 1 + SLACK
    assert not found.breaks


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_that_is_wrong_is_broken(name):
    target = TARGETS["error"][name]
    wrong = {"mixed": 0.4, "linear": 0.4, "pinsker_marginal": 0.4}.get(name, 0.5)
    found = search(
        Target(bounded=target.bounded, bound=lambda of: wrong * target.bound(of), reads=target.reads),
        2,
        2,
        0,
        draws=100,
        steps=20,
    )
    assert found.breaks
    error, *_ = by_hand(found.at, 0)
    assert abs(error) > wrong * float(BOUNDS[name](bounds_free.expansion(found.at))) * (1 + SLACK)


@pytest.mark.parametrize("name", RELAXATIONS)
def test_half_a_bound_on_replay_is_broken(name):
    target = TARGETS["replay"][name]
    found = search(
        Target(bounded=target.bounded, bound=lambda of: 0.5 * target.bound(of)), 2, 2, 0, draws=200, steps=20
    )
    assert found.breaks


def test_half_of_the_linear_bound_is_near_what_it_bounds():
    sharp = search(TARGETS["error"]["halved"], 2, 3, 0, draws=100, steps=60)
    assert sharp.ratio > 0.95
    below = Target(bounded=bounds_free.error, bound=lambda of: 0.9 * halved(bounds_free.expansion(of)))
    assert search(below, 2, 3, 0, draws=100, steps=60).breaks


def test_a_search_is_the_same_every_time():
    first, second = (search(TARGETS["error"]["adaptive"], 2, 2, 5, draws=60, steps=5) for _ in range(2))
    assert first.ratio == second.ratio
    assert torch.equal(first.at.pi, second.at.pi)


def test_the_halved_bound_gives_way_to_what_the_value_loses_or_gains():
    for seed in range(8):
        of = _rewarded(TARGETS["error"]["linear"], free(2, 4, seed))
        error, gap, total = bounds_free.error(of), bounds_free.gap(of), halved(bounds_free.expansion(of))
        assert bool((error <= total - gap.clamp(max=0).abs() + 1e-12).all())
        assert bool((-error <= total - gap.clamp(min=0) + 1e-12).all())


@pytest.mark.parametrize(("of", "name"), [(of, name) for of, names in TARGETS.items() for name in names])
def test_the_ascent_climbs(of, name):
    target = TARGETS[of][name]
    drawn, climbed = (search(target, 2, 3, 1, draws=25, steps=steps).ratio for steps in (1, 60 if target.reads else 12))
    assert climbed > drawn or drawn > 0.99
