"""Fixtures of the core tests: batches with masks in awkward places, and one way to say "the same number"."""

import runpy
from pathlib import Path

import pytest
import torch

from firstorder.core.method.stats import TokenStats

EXACT = runpy.run_path(str(Path(__file__).parents[1] / "tolerances.py"))["EXACT"]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def same():
    """Asserts that two tensors (or nested lists) hold the same numbers, up to the rounding of their dtype."""

    def check(actual, expected):
        actual = torch.as_tensor(actual)
        expected = torch.as_tensor(expected, dtype=actual.dtype)
        assert actual.shape == expected.shape
        if actual.numel():
            rtol = EXACT[actual.dtype]
            scale = float(expected.abs().max())
            torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * scale)

    return check


@pytest.fixture(scope="session")
def make_stats():
    """A random batch, with prompt, environment and padding tokens off the mask and values on them."""

    def make(seed=0, size=6, length=8, spread=0.3, dtype=torch.float64):
        g = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=g, dtype=dtype)

        base = -(normal(size, length).abs() + 1.0)
        mask = torch.rand(size, length, generator=g) < 0.7
        mask[:, 0] = False
        mask[:, 1] = True
        mask[0] = torch.tensor([False, True, True, False, False, True, True, False])[:length]
        return TokenStats(
            logp_theta=(base + spread * normal(size, length)).clamp(max=-1e-3),
            logp_old=(base + spread * normal(size, length)).clamp(max=-1e-3),
            logp_mu=(base + spread * normal(size, length)).clamp(max=-1e-3),
            mask=mask,
            advantage=torch.cat([torch.zeros(1, dtype=dtype), normal(size - 1)]),
            kl_mu=0.02 * normal(size, length).abs(),
            router_shift=0.3 * normal(size, length).abs(),
            rewards=torch.rand(size, generator=g, dtype=torch.float64).to(dtype),
        )

    return make
