import math
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import made

from firstorder.core.audit.clustered import (
    clusters,
    estimates,
    interval,
    merged,
    of_moments,
    student,
    to_moments,
    withheld,
)
from firstorder.core.audit.numbers import one_each
from firstorder.core.audit.table import Estimate
from firstorder.core.formats.chunk import chunks, pad
from firstorder.core.method.stats import TokenStats
from firstorder.core.training.diagnostics import diagnose, finalise, moments


def measured(stats):
    return clusters(of_moments(moments(one_each(stats))))


def quantities(sums):
    return finalise(to_moments(sums))


def simulated(g, responses, length=40, spread=0.1, shared=0.05):
    """Responses of many lengths, each with a shift of D of its own, so that its tokens are no independent draws."""
    mask = torch.arange(length) < torch.randint(length // 4, length + 1, (responses,), generator=g)[:, None]
    mu = -3 - 2 * torch.rand(responses, length, generator=g, dtype=torch.float64)
    d = spread * torch.randn(responses, length, generator=g) + shared * torch.randn(responses, 1, generator=g)
    mu, old = torch.where(mask, mu, 0.0), torch.where(mask, mu + d, 0.0)
    return TokenStats(
        logp_theta=old,
        logp_old=old,
        logp_mu=mu,
        mask=mask,
        advantage=torch.zeros(responses, dtype=torch.float64),
        rewards=(torch.rand(responses, generator=g) < 0.5).double(),
    )


def some_of(stats, rows):
    return TokenStats(**{name: x[rows] for name, x in vars(stats).items() if isinstance(x, torch.Tensor)})


def covered(truth, batches, names):
    """How often the intervals hold the truth."""
    hits = dict.fromkeys(names, 0)
    for stats in batches:
        found = estimates(measured(stats), lambda sums: {name: quantities(sums)[name] for name in names})
        for name in names:
            hits[name] += found[name].low is not None and found[name].low <= truth[name] <= found[name].high
    return {name: count / len(batches) for name, count in hits.items()}


@given(st.integers(0, 1000), st.integers(60, 400))
@settings(max_examples=15, deadline=None)
def test_values_are_those_of_the_whole_batch_however_it_is_cut(seed, positions):
    samples = made(seed=seed, count=8)
    found = estimates(reduce(merged, (measured(chunk.stats()) for chunk in chunks(samples, positions))), quantities)
    whole = diagnose(pad(samples).stats())
    assert {name: each.value for name, each in found.items()} == pytest.approx(
        {name: float(x) for name, x in whole.items()}, rel=1e-12, abs=1e-12
    )


@given(st.integers(0, 1000), st.integers(60, 400))
@settings(max_examples=15, deadline=None)
def test_intervals_do_not_depend_on_the_cut_nor_on_the_order(seed, positions):
    samples = made(seed=seed, count=8)
    parts = [measured(chunk.stats()) for chunk in chunks(samples, positions)]
    whole = estimates(measured(pad(samples).stats()), quantities)
    for order in (parts, parts[::-1]):
        found = estimates(reduce(merged, order), quantities)
        for name, each in whole.items():
            assert (found[name].low is None) == (each.low is None)
            if each.low is not None:
                width = each.high - each.low
                assert found[name].high - found[name].low == pytest.approx(width, rel=1e-6, abs=1e-12)


def test_standard_errors_are_those_of_a_bootstrap_over_responses():
    g = torch.Generator().manual_seed(1)
    stats = simulated(g, 400)
    found = estimates(measured(stats), quantities)
    draws = [diagnose(some_of(stats, torch.randint(400, (400,), generator=g))) for _ in range(300)]
    for name in (
        "kl",
        "k3_kl",
        "chi2_token",
        "token_eff_sample_size",
        "ppl_ratio",
        "rollout_probs_diff_std",
        "rollout_actor_probs_pearson_corr",
        "seq_log_ratio_std",
        "response_length",
        "reward_pi",
    ):
        spread = torch.stack([draw[name] for draw in draws]).std()
        error = (found[name].high - found[name].low) / 2 / student(399)
        assert error == pytest.approx(float(spread), rel=0.2), name


def test_intervals_of_means_cover_the_truth_as_often_as_they_say():
    g = torch.Generator().manual_seed(2)
    truth = diagnose(simulated(g, 40_000))
    names = ("kl", "k3_kl", "token_mult_prob_error", "rollout_probs_diff_mean")
    found = covered(truth, [simulated(g, 300) for _ in range(200)], names)
    assert all(0.90 <= share <= 0.985 for share in found.values()), found  # 95 % within 3 standard errors of 200


def test_eight_responses_are_enough_for_a_mean_and_not_for_a_spread():
    g = torch.Generator().manual_seed(3)
    truth = diagnose(simulated(g, 40_000))
    found = covered(truth, [simulated(g, 8) for _ in range(200)], ("kl", "k3_kl", "seq_log_ratio_std"))
    assert found["kl"] >= 0.88
    assert found["k3_kl"] >= 0.88
    assert found["seq_log_ratio_std"] < 0.88


def test_no_interval_made_of_seen_responses_covers_a_square_of_products_that_spread():
    """Why such intervals are withheld."""
    g = torch.Generator().manual_seed(4)
    truth = diagnose(simulated(g, 40_000, length=64, shared=0.03))
    assert float(truth["seq_log_ratio_std"]) > 1
    found = covered(
        truth,
        [simulated(g, 300, length=64, shared=0.03) for _ in range(100)],
        ("kl", "chi2_seq", "seq_eff_sample_size"),
    )
    assert found["kl"] > 0.88
    assert found["chi2_seq"] < 0.8
    assert found["seq_eff_sample_size"] < 0.8


def test_intervals_are_withheld_where_few_responses_carry_a_product():
    found = {name: Estimate(value=1.0, low=0.0, high=2.0) for name in ("square", "mean", "other")}

    def left(ess, responses):
        kept = withheld(found, ess, responses, squares=("square",), means=("mean",))
        return {name for name, each in kept.items() if each.low is not None}

    assert left(0.9, 200) == {"square", "mean", "other"}
    assert left(0.9, 60) == {"mean", "other"}
    assert left(0.9, 20) == {"mean", "other"}
    assert left(0.8, 200) == {"mean", "other"}
    assert left(0.5, 200) == {"mean", "other"}
    assert left(0.1, 200) == {"other"}
    assert left(math.nan, 200) == {"other"}


def test_a_tight_interval_far_from_zero_keeps_its_digits():
    """Σ x² less (Σ x)² / n would have none left."""
    x = 1e9 + torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    blocks = {"x": torch.stack([x, torch.ones(4, dtype=torch.float64)], -1)}
    parts = [clusters({name: block[i : i + 1] for name, block in blocks.items()}) for i in range(4)]
    error = math.sqrt(5 / 3 / 4)
    for found in (clusters(blocks), reduce(merged, parts)):
        (mean,) = estimates(found, lambda sums: {"mean": sums["x"][0] / sums["x"][1]}).values()
        assert (mean.high - mean.low) / 2 / student(3) == pytest.approx(error, rel=1e-9)


def test_numbers_near_the_largest_have_an_interval():
    w = torch.tensor([0.0, 100.0, 299.0, 300.0], dtype=torch.float64).exp()
    blocks = {"w": torch.stack([w, w.square()], -1)}
    found = estimates(clusters(blocks), lambda sums: {"ess": sums["w"][0] ** 2 / sums["w"][1] / 4})
    assert found["ess"].value == pytest.approx((math.e + 1) ** 2 / (math.e**2 + 1) / 4)
    assert math.isfinite(found["ess"].high)


def test_a_sum_that_is_no_number_costs_the_others_nothing():
    good = torch.tensor([[1.0, 1.0], [3.0, 1.0], [2.0, 1.0]], dtype=torch.float64)
    bad = torch.tensor([[torch.inf, 1.0], [torch.nan, 1.0], [0.0, 1.0]], dtype=torch.float64)

    def both(sums):
        return {name: block[0] / block[1] for name, block in sums.items()}

    whole = clusters({"good": good, "bad": bad})
    found = estimates(merged(whole, whole), both)
    assert set(found) == {"good"}
    alone = clusters({"good": good})
    assert found["good"].high == pytest.approx(estimates(merged(alone, alone), both)["good"].high, rel=1e-12)


def test_a_block_that_a_chunk_lacks_is_nothing_in_its_responses():
    g = torch.Generator().manual_seed(5)
    a, b = torch.rand(7, 2, generator=g), torch.rand(5, 2, generator=g)
    extra = torch.rand(5, 3, generator=g)
    found = merged(clusters({"x": a}), clusters({"y": extra, "x": b}))
    whole = clusters({"x": torch.cat([a, b]), "y": torch.cat([torch.zeros(7, 3), extra])})
    assert dict(found.widths) == dict(whole.widths)
    assert found.present.tolist() == [12, 5]
    torch.testing.assert_close(found.total, whole.total)
    torch.testing.assert_close(
        found.scatter * found.scale[:, None] * found.scale, whole.scatter * whole.scale[:, None] * whole.scale
    )


def test_one_response_has_no_interval_nor_have_those_that_say_the_same():
    one = clusters({"x": torch.tensor([[2.0, 1.0]])})
    assert estimates(one, lambda sums: {"x": sums["x"][0] / sums["x"][1]})["x"] == Estimate(value=2.0)
    same = merged(one, one)
    assert estimates(same, lambda sums: {"x": sums["x"][0] / sums["x"][1]})["x"] == Estimate(value=2.0)
    assert interval(1.0, math.nan, 9) == Estimate(value=1.0)


def test_only_the_responses_that_have_a_quantity_count_for_it():
    """One response with an advantage below 0 among many says nothing of its spread."""
    x = torch.zeros(50, 2, dtype=torch.float64)
    x[0] = torch.tensor([3.0, 2.0])
    found = estimates(clusters({"x": x}), lambda sums: {"x": sums["x"][0] / sums["x"][1]})
    assert found["x"] == Estimate(value=1.5)


@pytest.mark.parametrize(
    ("freedom", "value"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (5, 2.57058), (10, 2.22814), (100, 1.98397)]
)
def test_quantiles_of_student_are_those_of_the_tables(freedom, value):
    assert student(freedom) == pytest.approx(value, rel=2e-3)
