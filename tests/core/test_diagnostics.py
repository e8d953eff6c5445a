import math
import statistics
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.diagnostics import QUANTITIES, diagnose, finalise, moments


def slow(stats):
    """The quantities of a sampled batch from their formulas, over lists of plain numbers."""
    rows = [
        (old[on].tolist(), mu[on].tolist())
        for old, mu, on in zip(stats.logp_old, stats.logp_mu, stats.mask, strict=True)
    ]
    old = [x for row, _ in rows for x in row]
    mu = [x for _, row in rows for x in row]
    d = [a - b for a, b in zip(old, mu, strict=True)]
    rho = [math.exp(x) for x in d]
    p, q = [math.exp(x) for x in old], [math.exp(x) for x in mu]
    gap = [abs(a - b) for a, b in zip(p, q, strict=True)]
    total = [sum(a) - sum(b) for a, b in rows]
    w = [math.exp(x) for x in total]
    delta = [[math.exp(a - b) - 1 for a, b in zip(*row, strict=True)] for row in rows]
    pairs = [sum(a * b for a, b in combinations(row, 2)) for row in delta]
    rewards = stats.rewards.tolist()
    mean = statistics.fmean
    train = mean(math.exp(-mean(a)) for a, _ in rows)
    rollout = mean(math.exp(-mean(b)) for _, b in rows)
    return {
        "kl": -mean(d),
        "k3_kl": mean(math.exp(x) - x - 1 for x in d),
        "chi2_token": mean(r * r for r in rho) - 1,
        "chi2_seq": mean(math.exp(2 * x) for x in total) - 1,
        "rollout_is_eff_sample_size": mean(rho) ** 2 / mean(r * r for r in rho),
        "seq_eff_sample_size": mean(w) ** 2 / mean(x * x for x in w),
        "training_ppl": train,
        "rollout_ppl": rollout,
        "ppl_ratio": train / rollout,
        "rollout_probs_diff_mean": mean(gap),
        "rollout_probs_diff_std": statistics.pstdev(gap),
        "rollout_actor_probs_pearson_corr": statistics.correlation(p, q),
        "token_mult_prob_error": mean(math.exp(abs(x)) for x in d),
        "ratio_tail_2": mean(max(r, 1 / r) > 2 for r in rho),
        "ratio_tail_5": mean(max(r, 1 / r) > 5 for r in rho),
        "seq_log_ratio_std": statistics.pstdev(total),
        "response_length": mean(len(a) for a, _ in rows),
        "reward_pi": sum(x * r for x, r in zip(w, rewards, strict=True)) / sum(w),
        "second_order_remainder": mean(r * x for r, x in zip(rewards, pairs, strict=True)),
    }


def agree(found, expected):
    assert set(found) == set(expected)
    for name, value in found.items():
        # differences of moments lose the digits that the moments share
        assert float(value) == pytest.approx(float(expected[name]), rel=1e-9, abs=1e-11), name


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_quantity_is_its_formula_over_response_tokens(make_stats, seed):
    stats = make_stats(seed, spread=1.2)
    agree(diagnose(stats), slow(stats))


def test_every_quantity_has_a_formula_a_unit_and_a_source(make_stats):
    assert set(diagnose(make_stats())) == set(QUANTITIES)
    assert all(q.formula and q.unit and q.source for q in QUANTITIES.values())


def test_without_rewards_what_reads_them_is_left_out(make_stats):
    stats = make_stats()
    found = diagnose(replace(stats, rewards=None))
    assert set(QUANTITIES) - set(found) == {"reward_pi", "second_order_remainder"}
    agree(found, {name: value for name, value in diagnose(stats).items() if name in found})


def test_masked_tokens_enter_no_sum_and_no_denominator(make_stats):
    stats = make_stats()
    padded = {
        n: torch.cat([getattr(stats, n), torch.full((6, 5), -7.0, dtype=torch.float64)], dim=1)
        for n in ("logp_theta", "logp_old", "logp_mu")
    }
    mask = torch.cat([stats.mask, torch.zeros(6, 5, dtype=torch.bool)], dim=1)
    longer = replace(stats, **padded, mask=mask, kl_mu=None, router_shift=None)
    broken = replace(stats, logp_old=torch.where(stats.mask, stats.logp_old, torch.nan))
    agree(diagnose(longer), diagnose(stats))
    agree(diagnose(broken), diagnose(stats))


def test_engines_that_agree_show_no_distance(make_stats):
    stats = make_stats()
    found = diagnose(replace(stats, logp_old=stats.logp_mu))
    still = ("kl", "k3_kl", "chi2_token", "chi2_seq", "rollout_probs_diff_mean", "ratio_tail_2")
    for name in (*still, "second_order_remainder"):
        assert float(found[name]) == pytest.approx(0.0, abs=1e-15)
    for name in ("rollout_is_eff_sample_size", "ppl_ratio", "token_mult_prob_error"):
        assert float(found[name]) == pytest.approx(1.0)
    assert float(found["reward_pi"]) == pytest.approx(float(stats.rewards.mean()), rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.floats(0.0, 5.0), shift=st.floats(-3.0, 3.0))
def test_no_quantity_leaves_its_range(make_stats, seed, spread, shift):
    stats = make_stats(seed, spread=spread)
    found = diagnose(replace(stats, logp_mu=(stats.logp_mu + shift).clamp(max=0)))
    rounding = 1e-9
    assert found["chi2_token"] >= -1
    assert found["chi2_seq"] >= -1
    assert found["k3_kl"] >= -rounding
    assert 0 < found["rollout_is_eff_sample_size"] <= 1 + rounding
    assert 0 < found["seq_eff_sample_size"] <= 1 + rounding
    assert 0 <= found["ratio_tail_5"] <= found["ratio_tail_2"] <= 1
    assert stats.rewards.min() - rounding <= found["reward_pi"] <= stats.rewards.max() + rounding
    assert found["token_mult_prob_error"] >= 1
    assert all(torch.isfinite(v) for n, v in found.items() if n != "rollout_actor_probs_pearson_corr")


def test_an_expectation_of_a_chi_square_under_mu_is_not_negative(make_stats):
    # one token, every outcome of a vocabulary, each with the probability that mu gives it
    p, q = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.2, 0.3]], dtype=torch.float64)
    column = {"logp_theta": p.log()[:, None], "logp_old": p.log()[:, None], "logp_mu": q.log()[:, None]}
    stats = replace(
        make_stats(size=3, length=8),
        **column,
        mask=torch.ones(3, 1, dtype=torch.bool),
        measure=q,
        kl_mu=None,
        router_shift=None,
    )
    found = diagnose(stats)
    assert float(found["chi2_token"]) == pytest.approx(float((p * p / q).sum() - 1), rel=1e-12)
    assert float(found["kl"]) == pytest.approx(float((q * (q / p).log()).sum()), rel=1e-12)
    assert float(found["k3_kl"]) == pytest.approx(float(found["kl"]), rel=1e-12)
    assert found["chi2_token"] == found["chi2_seq"] >= 0


def test_a_measure_counts_like_repeated_responses(make_stats):
    counts = torch.tensor([1, 2, 3, 1, 5, 4])
    exhaustive = replace(make_stats(), measure=counts.double() / 16)
    names = ("logp_theta", "logp_old", "logp_mu", "mask", "advantage", "kl_mu", "router_shift", "rewards")
    repeated = {n: getattr(exhaustive, n).repeat_interleave(counts, 0) for n in names}
    agree(diagnose(replace(exhaustive, **repeated, measure=None)), diagnose(exhaustive))


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_the_moments_of_two_parts_add_up_to_the_whole(make_stats, cut):
    whole = make_stats(size=8)
    names = ("logp_theta", "logp_old", "logp_mu", "mask", "advantage", "kl_mu", "router_shift", "rewards")
    parts = [
        moments(replace(whole, **{n: getattr(whole, n)[part] for n in names})) for part in (slice(cut), slice(cut, 8))
    ]
    added = {
        name: (parts[0][name][0] + parts[1][name][0]) / (parts[0][name][1] + parts[1][name][1]) for name in parts[0]
    }
    agree(finalise(added), diagnose(whole))


def test_a_response_without_tokens_counts_nowhere(make_stats):
    stats = make_stats()
    names = ("logp_theta", "logp_old", "logp_mu", "mask", "advantage", "kl_mu", "router_shift", "rewards")
    fewer = replace(stats, **{n: getattr(stats, n)[1:] for n in names})
    mask = stats.mask.clone()
    mask[0] = False
    agree(diagnose(replace(stats, mask=mask)), diagnose(fewer))


def test_far_engines_stay_finite_in_single_precision(make_stats):
    stats = make_stats(dtype=torch.float32)
    found = diagnose(replace(stats, logp_mu=stats.logp_mu - 60.0))
    assert all(torch.isfinite(found[n]) for n in ("chi2_token", "chi2_seq", "rollout_is_eff_sample_size"))
