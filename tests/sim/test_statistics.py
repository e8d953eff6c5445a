import numpy as np
import pytest
import torch

from firstorder.sim.trials.statistics import Estimate, mean, ratio_of_means, seeds_to_settle, slope

SCALES = (0.1, 0.03, 0.01, 0.003)


def draws(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape))


def test_a_mean_is_the_mean_and_lies_in_its_interval():
    x = draws(40)
    found = mean(x)
    assert found.value == pytest.approx(float(x.mean()))
    half = 1.96 * float(x.std()) / 40**0.5
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.2 * half)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    covered = {"mean": 0, "ratio": 0, "slope": 0}
    for seed in range(60):
        x = 2 + draws(40, seed=seed)
        y = 4 + draws(40, seed=1000 + seed)
        counts = [torch.ones(40, dtype=torch.float64)] * 3
        errors = [s**1.5 * (0.3 * draws(40, seed=2000 + 3 * seed + i)).exp() for i, s in enumerate(SCALES[:3])]
        found = {"mean": mean(x), "ratio": ratio_of_means(x, y), "slope": slope(SCALES[:3], errors, counts)}
        for name, truth in (("mean", 2.0), ("ratio", 0.5), ("slope", 1.5)):
            covered[name] += found[name].low <= truth <= found[name].high
    assert all(50 <= hits <= 60 for hits in covered.values())


def test_a_ratio_of_means_pairs_the_policies():
    x = draws(30).exp()
    found = ratio_of_means(3 * x, x)
    assert (found.value, found.low, found.high) == pytest.approx((3.0, 3.0, 3.0))


@pytest.mark.parametrize("order", [0.0, 1.0, 2.0])
def test_the_slope_of_a_power_law_is_its_order(order):
    sizes = draws(20).exp()
    counts = [torch.full((20,), 4.0, dtype=torch.float64)] * 4
    found = slope(SCALES, [4 * sizes * s**order for s in SCALES], counts)
    assert (found.value, found.low, found.high) == pytest.approx((order, order, order), abs=1e-9)


def test_a_slope_is_that_of_the_mean_over_members_not_over_policies():
    counts = [torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([2.0, 0.0], dtype=torch.float64)]
    sums = [torch.tensor([0.1, 0.7], dtype=torch.float64), torch.tensor([0.02, 0.0], dtype=torch.float64)]
    found = slope((0.1, 0.01), sums, counts)
    assert found.value == pytest.approx(np.log10(0.2 / 0.01))


def test_a_slope_through_a_scale_without_members_settles_nothing():
    ones, none = torch.ones(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    found = slope((0.1, 0.01, 0.001), [0.1 * ones, 0.01 * ones, none], [ones, ones, none])
    assert not found.inside(-100, 100)
    assert not found.outside(-100, 100)
    assert np.isnan(found.value)


def test_an_interval_is_inside_outside_or_neither():
    estimate = Estimate(value=1.0, low=0.8, high=1.2)
    assert estimate.inside(0.8, 1.2)
    assert not estimate.inside(0.9, 1.3)
    assert estimate.outside(1.3, 2.0)
    assert estimate.outside(-1.0, 0.7)
    assert not estimate.outside(1.1, 2.0)
    assert estimate.json() == {"value": 1.0, "low": 0.8, "high": 1.2}


def test_the_same_data_give_the_same_interval():
    x = draws(25)
    assert mean(x) == mean(x.clone())


@pytest.mark.parametrize(
    ("low", "value", "high", "limit", "expected"),
    [
        (-0.1, 0.1, 0.3, 0.0, 32),
        (-0.3, -0.1, 0.1, 0.0, 32),
        (0.4, 0.6, 0.8, 0.5, 32),
        (-0.1, 0.1, 9.0, 0.0, 32),  # the far side faces nothing
        (0.05, 0.1, 0.15, 0.0, 2),
        (-0.1, 0.0, 0.1, 0.0, None),
        (float("nan"), 0.1, float("nan"), 0.0, None),
    ],
)
def test_the_seeds_that_would_settle_a_value(low, value, high, limit, expected):
    assert seeds_to_settle(Estimate(value=value, low=low, high=high), 8, limit) == expected


def test_as_many_seeds_as_were_said_do_settle_it():
    settled = 0
    for seed in range(40):
        first = mean(0.35 + draws(16, seed=seed))
        if first.value > 0 and (needed := seeds_to_settle(first, 16)):
            truth = (0.35 + draws(4000, seed=seed + 500))[:needed] - 0.35 + first.value  # the value stays what it was
            settled += mean(truth).low > 0
        else:
            settled += 1
    assert settled >= 16  # about half: the mean of the new seeds falls to either side of the value
