import math
import statistics
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.method.stats import TokenStats
from firstorder.core.quantities import add
from firstorder.core.training.diagnostics import QUANTITIES, diagnose, finalise, moments


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
    cut = [min(r, 2.0) for r in rho]
    return {
        "kl": -mean(d),
        "k3_kl": mean(math.exp(x) - x - 1 for x in d),
        "chi2_token": mean(r * r for r in rho) - 1,
        "chi2_seq": mean(math.exp(2 * x) for x in total) - 1,
        "token_eff_sample_size": mean(rho) ** 2 / mean(r * r for r in rho),
        "rollout_is_eff_sample_size": mean(cut) ** 2 / mean(r * r for r in cut),
        "seq_eff_sample_size": mean(w) ** 2 / mean(x * x for x in w),
        "training_ppl": mean(math.exp(-mean(a)) for a, _ in rows),
        "rollout_ppl": mean(math.exp(-mean(b)) for _, b in rows),
        "ppl_ratio": mean(math.exp(mean(b) - mean(a)) for a, b in rows),
        "rollout_probs_diff_mean": mean(gap),
        "rollout_probs_diff_std": statistics.stdev(gap),
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
    for name in ("token_eff_sample_size", "rollout_is_eff_sample_size", "ppl_ratio", "token_mult_prob_error"):
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
    assert found["k3_kl"] >= 0
    assert 0 < found["token_eff_sample_size"] <= 1 + rounding
    assert found["token_eff_sample_size"] - rounding <= found["rollout_is_eff_sample_size"] <= 1 + rounding
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
    sampled, expected = diagnose(replace(exhaustive, **repeated, measure=None)), diagnose(exhaustive)
    tokens = int((counts * exhaustive.mask.sum(-1)).sum())
    # an expectation has no degree of freedom to lose
    expected["rollout_probs_diff_std"] *= math.sqrt(tokens / (tokens - 1))
    agree(sampled, expected)


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_the_moments_of_two_parts_add_up_to_the_whole(make_stats, cut):
    whole = make_stats(size=8)
    names = ("logp_theta", "logp_old", "logp_mu", "mask", "advantage", "kl_mu", "router_shift", "rewards")
    parts = [
        moments(replace(whole, **{n: getattr(whole, n)[part] for n in names})) for part in (slice(cut), slice(cut, 8))
    ]
    agree(finalise(add(*parts)), diagnose(whole))


def test_a_response_without_tokens_counts_nowhere(make_stats):
    stats = make_stats()
    names = ("logp_theta", "logp_old", "logp_mu", "mask", "advantage", "kl_mu", "router_shift", "rewards")
    fewer = replace(stats, **{n: getattr(stats, n)[1:] for n in names})
    mask = stats.mask.clone()
    mask[0] = False
    agree(diagnose(replace(stats, mask=mask)), diagnose(fewer))


def test_far_engines_stay_finite_in_single_precision(make_stats):
    stats = make_stats(dtype=torch.float32)
    for shift in (-60.0, -5000.0):
        found = diagnose(replace(stats, logp_mu=stats.logp_mu + shift))
        assert all(torch.isfinite(x) for n, x in found.items() if "pearson" not in n and "ppl" not in n)


def sampled(old, mu, mask=None, dtype=torch.float64):
    old, mu = (torch.tensor(x, dtype=dtype) if isinstance(x, list) else x for x in (old, mu))
    mask = torch.ones_like(old, dtype=torch.bool) if mask is None else torch.tensor(mask, dtype=torch.bool)
    return TokenStats(logp_theta=old, logp_old=old, logp_mu=mu, mask=mask, advantage=torch.zeros(len(old)))


def test_every_quantity_that_carries_verl_s_name_is_verl_s_number():
    # two responses of two tokens: D = 0 and D = -1 on each token of the second
    found = diagnose(sampled([[-1.0, -1.0], [-3.0, -3.0]], [[-1.0, -1.0], [-2.0, -2.0]]))
    e = math.e
    p, q = [1 / e, 1 / e, e**-3, e**-3], [1 / e, 1 / e, e**-2, e**-2]
    expected = {
        "kl": 0.5,  # mean of log mu - log pi = (0 + 0 + 1 + 1) / 4
        "k3_kl": 0.5 / e,  # mean of exp D - D - 1 = (0 + 0 + 2 (1/e + 1 - 1)) / 4
        "training_ppl": (e + e**3) / 2,  # of each sequence exp(1), exp(3), then their mean
        "rollout_ppl": (e + e**2) / 2,
        "ppl_ratio": (1 + e)
        / 2,  # of each sequence exp(mean log mu - mean log pi) = 1, e: 1.859, not 11.4 / 5.05 = 2.256
        "chi2_token": (1 + e**-2) / 2 - 1,
        "chi2_seq": (1 + e**-4) / 2 - 1,  # the products are 1 and exp(-2), squared
        "rollout_is_eff_sample_size": ((1 + 1 / e) / 2) ** 2 / ((1 + e**-2) / 2),  # no ratio above 2
        "rollout_probs_diff_mean": (e**-2 - e**-3) / 2,
        "rollout_probs_diff_std": (e**-2 - e**-3) / math.sqrt(3),  # 0, 0, x, x over n - 1 = 3: x² 4/4 / 3
        "rollout_actor_probs_pearson_corr": statistics.correlation(p, q),
    }
    assert expected["ppl_ratio"] == pytest.approx(1.859, abs=5e-4)
    assert {n: float(found[n]) for n in expected} == pytest.approx(expected, rel=1e-12)


def test_verl_s_sample_size_is_that_of_truncated_weights():
    # ratios 1, 1, 1, 4 held at 2: (5/4)² / (7/4) = 25/28; untruncated (7/4)² / (19/4) = 49/76
    found = diagnose(sampled([[-3.0, -3.0, -3.0, math.log(0.2)]], [[-3.0, -3.0, -3.0, math.log(0.05)]]))
    assert float(found["rollout_is_eff_sample_size"]) == pytest.approx(25 / 28, rel=1e-12)
    assert float(found["token_eff_sample_size"]) == pytest.approx(49 / 76, rel=1e-12)


def test_quantities_named_after_other_frameworks_are_theirs():
    found = diagnose(sampled([[-1.0, -2.0], [-1.5, -9.0]], [[-2.0, -1.0], [-1.5, -1.0]], [[1, 1], [1, 0]]))
    # NeMo-RL: exp |log pi - log mu| = e, e, 1; verl: lengths 2 and 1
    assert float(found["token_mult_prob_error"]) == pytest.approx((2 * math.e + 1) / 3, rel=1e-12)
    assert float(found["response_length"]) == 1.5


def test_an_empty_response_is_left_out_of_every_mean():
    # verl's response_length/mean counts its 0 tokens, response_length_non_aborted/mean does not; its perplexities take
    # such a response for one of perplexity 1
    full = sampled([[-1.0, -2.0]], [[-2.0, -1.0]])
    empty = sampled([[-1.0, -2.0], [-4.0, -4.0]], [[-2.0, -1.0], [-1.0, -1.0]], [[1, 1], [0, 0]])
    agree(diagnose(empty), {name: float(x) for name, x in diagnose(full).items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_k3_keeps_its_digits_where_the_engines_nearly_agree(dtype):
    d, tokens = 1e-4, 32_768
    mu = torch.full((1, tokens), -0.5, dtype=dtype)
    mu += torch.linspace(0, 0.25, tokens).to(dtype)
    old = (mu.double() + d).to(dtype)
    exact = (old.double() - mu.double()).expm1() - (old.double() - mu.double())
    found = diagnose(sampled(old, mu))
    assert found["k3_kl"] > 0
    assert float(found["k3_kl"]) == pytest.approx(float(exact.mean()), rel=1e-9)
    assert float(found["k3_kl"]) == pytest.approx(5e-9, rel=1e-3)  # D² / 2, and float32 rounds D by 3e-8 of 1e-4
    assert float(diagnose(sampled(mu, mu))["k3_kl"]) == 0.0
    assert float(found["chi2_token"]) == pytest.approx(2e-4, rel=1e-3)


def test_k3_is_never_negative_over_many_tokens_in_single_precision():
    g = torch.Generator().manual_seed(0)
    mu = -torch.rand(4, 32_768, generator=g)
    for spread in (1e-7, 1e-5, 1e-3):
        old = (mu + spread * torch.randn(4, 32_768, generator=g)).clamp(max=0.0)
        found = diagnose(sampled(old, mu))
        assert 0.0 <= float(found["k3_kl"]) < 10 * spread**2 + 1e-13


def test_probabilities_close_to_one_and_to_each_other_keep_their_correlation_in_single_precision():
    # 1 - p from 1e-5 to 2e-5 beside 1 - q = (1 - p) (1 ± 1/10): in float32 sums of p², q² and p q all round to n
    miss = torch.linspace(1e-5, 2e-5, 4096, dtype=torch.float64)
    wobble = 1 + 0.1 * torch.tensor([1.0, -1.0]).repeat(2048)
    old, mu = ((-x).log1p().float()[None] for x in (miss, miss * wobble))
    p, q = old.double().expm1()[0].tolist(), mu.double().expm1()[0].tolist()
    found = float(diagnose(sampled(old, mu))["rollout_actor_probs_pearson_corr"])
    assert found == pytest.approx(statistics.correlation(p, q), rel=1e-9)
    assert 0.85 < found < 0.95


def test_moments_of_ranks_with_unlike_tokens_add_up_in_single_precision():
    g = torch.Generator().manual_seed(1)
    mu = torch.cat([-1e-4 * torch.rand(2, 500, generator=g), -5 - torch.rand(2, 500, generator=g)])
    old = mu + 1e-4 * torch.randn(4, 500, generator=g).clamp(max=-mu)
    parts = [moments(sampled(old[cut], mu[cut])) for cut in (slice(2), slice(2, 4))]
    agree(finalise(add(*parts)), {name: float(x) for name, x in diagnose(sampled(old, mu)).items()})
