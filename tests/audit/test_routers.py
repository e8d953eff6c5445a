from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import judged, responses

from firstorder.core.audit.finding import Known
from firstorder.core.audit.routers import PRECISION, UNREPLAYED, flipped
from firstorder.core.formats.chunk import pad
from firstorder.core.routing import flips

R3 = Known(replay="R3")


def moved(samples, size):
    """Log-probs of the trainer moved by `size` nats, per 1 - p, at tokens whose experts differ."""
    out = []
    for i, s in enumerate(samples):
        g = torch.Generator().manual_seed(i)
        differ = torch.cat([torch.zeros(1, dtype=torch.bool), flips(s.routes, s.routes_old).any(-1)[:-1]])
        shift = size * torch.randn(len(differ), generator=g, dtype=torch.float64) * -s.logp_old.expm1()
        out.append(replace(s, logp_old=(s.logp_old + torch.where(differ, shift, 0.0)).clamp(max=0.0)))
    return out


def test_log_probs_that_hang_on_the_trainers_own_experts_were_not_replayed():
    samples = moved(responses(flipped=0.1, noise=0.02), 0.3)
    found = judged(UNREPLAYED, samples, R3)
    assert found.fault == "routes not replayed"
    assert judged(UNREPLAYED, samples, Known()) is None
    assert judged(UNREPLAYED, samples, Known(replay="R2")) is None


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.01, 0.1, 0.5, 0.95]), size=st.sampled_from([0.0, 0.02]))
def test_replayed_log_probs_are_not_accused(seed, share, size):
    samples = moved(responses(seed, flipped=share), size)
    assert judged(UNREPLAYED, samples, R3) is None


def test_few_flips_or_few_responses_say_nothing():
    assert judged(UNREPLAYED, moved(responses(flipped=0.003), 0.5), R3) is None
    assert judged(UNREPLAYED, moved(responses(count=5, flipped=0.2), 0.5), R3) is None


def test_the_row_before_a_token_made_it():
    samples = responses(count=3, length=20, flipped=0.3)
    chunk = pad(samples)
    differ, known = flipped(chunk)
    assert not known[:, :2, :].any() or not known[:, 0].any()
    for row, sample in enumerate(samples):
        expected = flips(sample.routes, sample.routes_old)[:-1]
        torch.testing.assert_close(differ[row, 1 : len(sample.tokens)], expected)


def test_an_engine_in_fp32_whose_routes_flip_has_other_routers():
    samples = responses(flipped=0.05, noise=1e-6)
    found = judged(PRECISION, samples, Known(precision="fp32"))
    assert found.fault == "router precision"
    assert judged(PRECISION, samples, Known(precision="bf16")) is None
    assert judged(PRECISION, samples, Known()) is None
    assert judged(PRECISION, responses(flipped=0.0), Known(precision="fp32")) is None
