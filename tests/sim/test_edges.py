"""KL of two arrays of log-probs, against sums of sixty digits."""

from decimal import Decimal, localcontext

import pytest
import torch

from firstorder.sim.exact.edges import SERIES, kl


def by_digits(p, q):
    """Σ p log(p/q) of what each pair of rows says once it sums to 1."""
    with localcontext(prec=60):
        rows = [[Decimal(x) for x in row.tolist()] for row in (p, q)]
        first, second = ([x - sum(y.exp() for y in row).ln() for x in row] for row in rows)
        return float(sum(a.exp() * (a - b) for a, b in zip(first, second, strict=True)))


def pair(size, seed=0, vocab=5):
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(4, vocab, generator=generator, dtype=torch.float64) for _ in range(2))
    return (2 * first).log_softmax(-1), (2 * first + size * second).log_softmax(-1)


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.0, 3.0, 30.0, 800.0])
def test_a_divergence_keeps_its_digits_however_close_the_policies_are(size):
    p, q = pair(size)
    for row, (first, second) in enumerate(zip(p, q, strict=True)):
        assert float(kl(p, q)[row]) == pytest.approx(by_digits(first, second), rel=2e-15, abs=0)


def test_policies_that_are_one_are_not_apart():
    p, _ = pair(1.0)
    assert torch.equal(kl(p, p), torch.zeros(4, dtype=torch.float64))


def test_the_two_forms_meet_where_the_series_ends():
    p = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    below, above = (torch.stack([p[0] + s, p[1] - s]) for s in (SERIES * (1 - 1e-15), SERIES))
    assert float(kl(p, above)) == pytest.approx(float(kl(p, below)), rel=1e-14)


@pytest.mark.parametrize("size", [1e-3, 0.5, 5.0, 900.0])
def test_the_slope_is_that_of_the_plain_form(size):
    logits = [x.clone().requires_grad_() for x in pair(size, seed=1)]
    p, q = (x.log_softmax(-1) for x in logits)
    found = torch.autograd.grad(kl(p, q).sum(), logits, retain_graph=True)
    plain = torch.autograd.grad((p.exp() * (p - q)).sum(), logits)
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * float(b.abs().max()))
