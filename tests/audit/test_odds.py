import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.audit.odds import LEVEL, Z, sign_z, tail, tails


def binomial(hits, trials, chance):
    return sum(math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(hits, trials + 1))


@settings(max_examples=60, deadline=None)
@given(trials=st.integers(1, 60), share=st.floats(0, 1), chance=st.floats(0.01, 0.99))
def test_the_bound_is_above_the_exact_tail(trials, share, chance):
    hits = round(share * trials)
    assert tail(hits, trials, chance) >= binomial(hits, trials, chance) * (1 - 1e-9)


def test_the_bound_of_all_hits_is_exact():
    assert math.isclose(tail(5, 5, 0.2), 0.2**5)


@settings(max_examples=40, deadline=None)
@given(trials=st.integers(1, 200), share=st.floats(0, 1), chance=st.floats(0.01, 0.99))
def test_the_elementwise_bound_is_the_same(trials, share, chance):
    hits = round(share * trials)
    logs = tails(torch.tensor([hits]), torch.tensor([trials]), torch.tensor([chance]))
    assert math.isclose(float(logs), math.log(tail(hits, trials, chance)), rel_tol=1e-6, abs_tol=1e-6)


def test_the_quantile_is_that_of_the_level():
    assert math.isclose(0.5 * math.erfc(Z / math.sqrt(2)), LEVEL, rel_tol=0.05)


def test_tokens_that_share_terms_with_their_neighbours_stray_no_further_than_allowed_for():
    g = torch.Generator().manual_seed(0)
    mu, old = torch.randn(2, 2000, 400, generator=g)  # unrelated: the worst case of a file that is right
    there, here = (torch.roll(mu, 1, -1) - old).abs(), (mu - old).abs()
    z = sign_z((there < here).sum(-1), (there > here).sum(-1))
    assert float(z.std()) <= 1.0
    assert abs(float(z.mean())) < 0.1
