import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import judged, responses
from scipy import stats

from firstorder.core.audit.clusters import normal_score, t_score
from firstorder.core.audit.finding import Known, merged
from firstorder.core.audit.readings import LEVELS, READINGS, compared_with
from firstorder.core.audit.size import BEYOND, PRECISION, SIMULATED, large_for_length, normal, size, terms
from firstorder.core.formats.chunk import chunks


def measured(samples, positions=1 << 12):
    sums = {}
    for chunk in chunks(samples, positions):
        sums = merged(sums, terms(chunk))
    return sums


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.5, 2.0, 5.0]), noise=st.sampled_from([1e-3, 0.02, 0.1]))
def test_the_noise_of_the_logits_is_read_off_whatever_the_entropy(seed, spread, noise):
    found = size(measured(responses(seed, spread=spread, noise=noise)))
    assert found.noise == pytest.approx(noise, rel=0.1)
    assert found.noise_low < found.noise
    assert found.off < 1.5  # the bounds are exact, the squares of a bin are a sample of a hundred tokens or more


def test_the_parts_of_a_size_are_those_of_the_tokens():
    samples = responses(count=12, length=50)
    d = torch.cat([(s.logp_old - s.logp_mu)[s.mask] for s in samples])
    found = size(measured(samples, positions=200))
    assert (found.tokens, found.responses, found.length) == (600, 12, 50.0)
    assert found.k3 == pytest.approx(float((d.expm1() - d).mean()))
    assert found.mean_abs == pytest.approx(float(d.abs().mean()))
    assert 0 < found.k3_low < found.k3


def test_what_a_sequence_weight_keeps_is_the_effective_share_of_independent_tokens():
    samples = responses(count=4000, length=30, noise=0.05)
    w = torch.stack([(s.logp_old - s.logp_mu)[s.mask].sum() for s in samples]).exp()
    effective = float(w.mean() ** 2 / w.square().mean())
    assert size(measured(samples)).kept == pytest.approx(effective, abs=0.02)


def test_a_discrepancy_beyond_the_border_is_large_for_its_length():
    samples = responses(noise=0.1)
    k3 = size(measured(samples)).k3
    near = large_for_length(lambda kl: 100 * (k3 / kl))
    far = large_for_length(lambda kl: 101 * (k3 / kl))
    assert judged(far, samples) is None
    assert judged(near, samples) is None  # not surely beyond
    assert judged(large_for_length(lambda kl: 50 * (k3 / kl)), samples).fault == "large for its length"
    assert judged(large_for_length(lambda kl: math.inf), samples) is None


def test_few_responses_are_not_large_for_anything():
    samples = responses(count=3, length=500, noise=3.0)
    assert judged(large_for_length(lambda kl: 1.0), samples) is None
    assert judged(PRECISION, samples, Known(precision="bf16")) is None


@pytest.mark.parametrize("precision", SIMULATED)
def test_logits_further_apart_than_a_precision_makes_them_are_named(precision):
    most = BEYOND * SIMULATED[precision]
    known = Known(precision=precision)
    assert judged(PRECISION, responses(noise=2 * most), known).fault == "large for its precision"
    assert judged(PRECISION, responses(noise=most / 2), known) is None
    assert judged(PRECISION, responses(noise=2 * most), Known()) is None


def test_what_is_normal_is_said_with_its_figures_and_where_they_come_from():
    said = normal(measured(responses(noise=0.02)), Known(precision="bf16"), lambda kl: 5000.0)
    assert "logits that differ by 0.02 nats (derived)" in said
    assert "In the simulator, bf16 comes to 0.03 for half of the policies, and to 0.75 at most." in said
    assert "like rounding" in said
    assert "5,000 tokens" in said
    assert "below it" in said


def test_what_moves_sure_tokens_as_far_as_unsure_ones_is_not_like_rounding():
    g = torch.Generator().manual_seed(0)
    samples = [
        replace(s, logp_old=s.logp_mu - 0.1 * torch.rand(len(s.tokens), generator=g, dtype=torch.float64))
        for s in responses(spread=6.0)
    ]
    assert "not like rounding" in normal(measured(samples), Known())
    assert "not like rounding" not in normal(measured(responses(spread=6.0)), Known())


@given(z=st.floats(0.1, 8.0), count=st.integers(8, 5000))
def test_a_t_statistic_and_its_normal_score_undo_each_other(z, count):
    assert normal_score(t_score(z, count), count) == pytest.approx(z)
    assert t_score(z, count) >= z * 0.99


def test_the_normal_score_is_that_of_students_distribution():
    for count in (8, 15, 60):
        for t in (2.0, 5.0, 15.0):
            exact = stats.norm.isf(stats.t.sf(t, count - 1))
            assert normal_score(t, count) == pytest.approx(float(exact), rel=0.03)
    assert normal_score(100.0, 7) == 0.0


def test_readings_of_others_stand_below_those_of_the_dump_each_with_its_source():
    found = size(measured(responses(noise=0.02)))
    table = compared_with(found)
    assert [row["what"] for row in table.rows[:2]] == ["this dump", "this dump"]
    assert float(table.rows[0]["value"]) == pytest.approx(found.k3, rel=0.05)
    assert len(table.rows) == 2 + len(READINGS) + len(LEVELS)
    assert all(row["source"] for row in table.rows[2:])
