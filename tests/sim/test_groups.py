import itertools
import math

import pytest
import torch

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Advantage
from firstorder.sim.exact import groups
from firstorder.sim.exact.groups import expected_parts, expected_products

RULES = [
    Advantage(baseline="none"),
    Advantage(baseline="group_mean"),
    Advantage(baseline="leave_one_out"),
    Advantage(baseline="group_mean", std=True),
    Advantage(baseline="leave_one_out", std=True),
]
LEVELS = {2: [0.0, 1.0], 3: [0.0, 0.5, 1.0]}
CHANCES = {2: [[0.3, 0.7], [0.95, 0.05]], 3: [[0.2, 0.3, 0.5], [0.0, 0.9, 0.1]]}

pytestmark = [
    pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.baseline}{'_std' if r.std else ''}"),
    pytest.mark.parametrize("levels", [2, 3]),
]


def everybody(reference, levels, chance, rule, size):
    """Every group of level indices with its chance and its signed advantages [(A⁺, A⁻), ...]."""
    for picks in itertools.product(range(len(levels)), repeat=size):
        earned = reference.group_advantage([levels[i] for i in picks], rule)
        yield picks, math.prod(chance[i] for i in picks), [(max(a, 0.0), max(-a, 0.0)) for a in earned]


def pair_of(signed):
    return torch.tensor(signed, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_expected_advantages_are_means_over_all_groups(reference, levels, rule, size):
    if size == 1 and rule.baseline != "none":
        size = 4
    rewards = LEVELS[levels]
    for chance in CHANCES[levels]:
        total, weight = [[0.0, 0.0] for _ in rewards], [0.0] * levels
        for picks, p, signed in everybody(reference, rewards, chance, rule, size):
            weight[picks[0]] += p
            for sign in (0, 1):
                total[picks[0]][sign] += p * signed[0][sign]
        given = torch.tensor(rewards, dtype=torch.float64), torch.tensor(chance, dtype=torch.float64)
        found = torch.stack(expected_parts(*given, rule, size), dim=-1)
        for level in range(levels):
            if weight[level]:
                assert found[level].tolist() == pytest.approx(
                    [t / weight[level] for t in total[level]], rel=1e-12, abs=1e-15
                )


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_expected_products_are_means_over_all_groups(reference, levels, rule, size):
    if size == 1 and rule.baseline != "none":
        size = 4
    rewards, chances = LEVELS[levels], CHANCES[levels]
    given = torch.tensor(rewards, dtype=torch.float64), torch.tensor(chances, dtype=torch.float64)
    own, pair = expected_products(*given, rule, size)
    assert own.shape == (2, levels, 2)
    for x, chance in enumerate(chances):
        squares = torch.zeros(levels, 2, dtype=torch.float64)
        products = torch.zeros(levels, 2, levels, 2, dtype=torch.float64)
        for picks, p, signed in everybody(reference, rewards, chance, rule, size):
            if chance[picks[0]]:
                squares[picks[0]] += p / chance[picks[0]] * pair_of(signed[0]) ** 2
            if size > 1 and chance[picks[0]] * chance[picks[1]]:
                both = torch.outer(pair_of(signed[0]), pair_of(signed[1]))
                products[picks[0], :, picks[1], :] += p / chance[picks[0]] / chance[picks[1]] * both
        seen = torch.tensor(chance) > 0
        torch.testing.assert_close(own[x][seen], squares[seen], rtol=1e-12, atol=1e-15)
        together = pair[x].view(levels, 2, levels, 2)[seen][:, :, seen]
        torch.testing.assert_close(together, products[seen][:, :, seen], rtol=1e-12, atol=1e-15)


def test_the_mean_advantage_of_a_prompt_is_zero_once_there_is_a_baseline(levels, rule):
    given = torch.tensor(LEVELS[levels], dtype=torch.float64), torch.tensor(CHANCES[levels], dtype=torch.float64)
    plus, minus = expected_parts(*given, rule, 6)
    assert (plus >= 0).all()
    assert (minus >= 0).all()
    mean = (given[1] * (plus - minus)).sum(-1)
    if rule.baseline == "none":
        torch.testing.assert_close(mean, given[1] @ given[0])
    else:
        torch.testing.assert_close(mean, torch.zeros(2, dtype=torch.float64), rtol=0.0, atol=1e-14)


def test_too_many_compositions_are_refused_with_a_remedy(levels, rule):
    size = groups.MAX_COMPOSITIONS + 2
    given = torch.tensor(LEVELS[levels], dtype=torch.float64), torch.tensor(CHANCES[levels], dtype=torch.float64)
    if rule.baseline == "none":
        plus, minus = expected_parts(*given, rule, size)
        assert torch.equal(plus[0] - minus[0], given[0])
        return
    message = f"{levels} reward levels and schedule.group_size = {size} .* lower schedule.group_size to "
    with pytest.raises(ConfigError, match=message):
        expected_parts(*given, rule, size)
