from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import judged, responses

from firstorder.core.audit.staleness import COLUMNS, OTHER_RATIO, STALE


def mixed(first, noise_old, noise_new, seed=0, count=60):
    """Responses whose first tokens are of the version before, and as far apart as `noise_old` makes them."""
    old, new = (responses(seed, count=count, noise=noise) for noise in (noise_old, noise_new))
    out = []
    for a, b in zip(old, new, strict=True):
        early = torch.arange(len(a.tokens)) <= first
        columns = {n: torch.where(early, getattr(a, n), getattr(b, n)) for n in ("tokens", "logp_mu", "logp_old")}
        out.append(replace(b, version=torch.where(early, 2, 3), **columns))
    return out


def test_tokens_of_an_older_version_that_disagree_more_are_stale():
    found = judged(STALE, mixed(40, 0.2, 0.02))
    assert found.fault == "stale weights"
    assert "10." in found.evidence or "9." in found.evidence


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), first=st.integers(2, 90), noise=st.sampled_from([0.0, 0.01, 0.2]))
def test_versions_that_agree_alike_are_not_stale(seed, first, noise):
    assert judged(STALE, mixed(first, noise, noise, seed)) is None


def test_three_responses_say_nothing_of_versions():
    assert judged(STALE, mixed(40, 0.2, 0.02, count=3)) is None


def test_versions_that_are_unknown_or_all_alike_are_not_compared():
    samples = responses()
    assert judged(STALE, samples) is None
    assert judged(STALE, [replace(s, version=torch.full_like(s.version, -1)) for s in samples]) is None


@pytest.mark.parametrize("name", COLUMNS)
def test_a_ratio_of_other_log_probs_is_named(name):
    samples = responses()
    ratio = [COLUMNS[name](s.logp_old - s.logp_mu) for s in samples]
    right = [replace(s, columns={name: r.float().double()}) for s, r in zip(samples, ratio, strict=True)]
    assert judged(OTHER_RATIO, right) is None
    moved = [COLUMNS[name](s.logp_old + 0.2 * torch.sin(s.logp_old) - s.logp_mu) for s in samples]
    wrong = [replace(s, columns={name: r}) for s, r in zip(samples, moved, strict=True)]
    found = judged(OTHER_RATIO, wrong)
    assert found.fault == "other ratio"
    assert name in found.evidence


def test_a_ratio_in_bf16_is_no_other_ratio():
    samples = [
        replace(s, columns={"importance_ratio": (s.logp_old - s.logp_mu).exp().bfloat16().double()})
        for s in responses(noise=0.1)
    ]
    assert judged(OTHER_RATIO, samples) is None


def test_a_dump_without_ratios_is_not_accused_of_them():
    assert judged(OTHER_RATIO, responses()) is None
