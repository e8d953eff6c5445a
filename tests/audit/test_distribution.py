from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import judged, responses

from firstorder.core.audit.distribution import BLIND_TEMPERATURE, TEMPERATURE, TRUNCATION, UNRECORDED

ALL = (TRUNCATION, TEMPERATURE, BLIND_TEMPERATURE, UNRECORDED)


def at(temperature):
    return lambda logp: (logp / temperature).log_softmax(-1)


def largest(count):
    def kept(logp):
        least = logp.topk(count, -1).values[..., -1:]
        return torch.where(logp >= least, logp, -torch.inf).log_softmax(-1)

    return kept


def raw(logp):
    return logp


def blind(samples):
    return [replace(sample, entropy=None) for sample in samples]


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.3, 1.0, 3.0, 6.0]),
    noise=st.sampled_from([0.0, 1e-6, 1e-3, 0.03, 0.1]),
)
def test_engines_with_the_same_weights_are_not_accused_at_any_noise_or_entropy(seed, spread, noise):
    samples = responses(seed, spread=spread, noise=noise)
    for detector in (TRUNCATION, TEMPERATURE, UNRECORDED):
        assert judged(detector, samples) is None
    assert judged(BLIND_TEMPERATURE, blind(samples)) is None


@pytest.mark.parametrize("temperature", [0.7, 0.9, 1.1, 1.3])
def test_another_temperature_that_is_recorded_is_named_with_its_value(temperature):
    samples = responses(sampled=at(temperature))
    found = judged(TEMPERATURE, samples)
    assert found.fault == "temperature"
    assert float(found.evidence.split(" at ")[-1].split(" ")[0]) == pytest.approx(temperature, rel=0.05)
    assert judged(UNRECORDED, samples) is None
    assert judged(TRUNCATION, samples) is None


@pytest.mark.parametrize("temperature", [0.9, 1.1])
def test_a_temperature_is_found_without_entropies_too(temperature):
    samples = blind(responses(sampled=at(temperature), noise=0.005))
    assert judged(BLIND_TEMPERATURE, samples).fault == "temperature"


def test_a_temperature_is_reported_once():
    assert judged(BLIND_TEMPERATURE, responses(sampled=at(1.1))) is None


@pytest.mark.parametrize("temperature", [0.8, 1.25])
def test_a_temperature_that_is_not_recorded_shows_in_what_was_sampled(temperature):
    samples = responses(sampled=at(temperature), recorded=raw)
    found = judged(UNRECORDED, samples)
    assert ("lower temperature" in found.evidence) == (temperature < 1)
    assert judged(TEMPERATURE, samples) is None
    assert judged(TRUNCATION, samples) is None


@pytest.mark.parametrize("count", [4, 12])
def test_log_probs_that_are_renormalised_over_the_largest_tokens_leave_out_a_mass(count):
    samples = responses(sampled=largest(count))
    found = judged(TRUNCATION, samples)
    assert found.fault == "truncation"
    mass = float(found.evidence.split("a mass of ")[1].rstrip("."))
    ratio = torch.cat([(s.logp_old - s.logp_mu)[s.mask].exp() for s in samples])
    assert mass == pytest.approx(float(ratio.mean()), abs=1e-3)
    assert judged(UNRECORDED, samples) is None


def test_raw_log_probs_of_a_truncated_engine_are_likelier_than_the_entropy_says():
    samples = responses(sampled=largest(6), recorded=raw)
    assert judged(TRUNCATION, samples) is None
    assert "likelier" in judged(UNRECORDED, samples).evidence


def test_a_temperature_is_found_in_three_long_responses_and_not_in_a_few_tokens():
    assert judged(TEMPERATURE, responses(count=3, length=1500, sampled=at(1.2))) is not None
    assert judged(TEMPERATURE, responses(count=3, length=50, sampled=at(1.2))) is None


def test_a_deficit_of_a_few_contexts_is_no_filter():
    samples = responses(count=100, noise=1e-3)
    lost = [replace(s, logp_old=torch.where(s.tokens == 7, s.logp_old - 1.0, s.logp_old)) for s in samples]
    share = float(torch.cat([(s.tokens == 7)[s.mask] for s in samples]).double().mean())
    kept = [s if i % 3 == 0 else samples[i] for i, s in enumerate(lost)]
    assert share / 3 < 0.02
    assert judged(TRUNCATION, kept) is None


@pytest.mark.parametrize("detector", ALL)
def test_the_order_and_the_chunks_of_a_dump_make_no_difference(detector):
    samples = responses(sampled=at(1.2))
    samples = blind(samples) if detector is BLIND_TEMPERATURE else samples
    one, other = judged(detector, samples, positions=1 << 20), judged(detector, samples[::-1], positions=512)
    assert (one is None) == (other is None)
    assert one is None or one.fault == other.fault
