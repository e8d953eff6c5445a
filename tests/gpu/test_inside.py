"""A recipe inside another trainer, on a GPU: the host waits for it when the numbers are read, and then once."""

import warnings

import pytest
import torch

import firstorder as fo
from firstorder.core.method.stats import UnreadStats
from firstorder.core.training.inside import Method

pytestmark = pytest.mark.gpu


def stats(device):
    g = torch.Generator().manual_seed(0)
    base = -torch.rand(8, 64, generator=g, dtype=torch.float64) - 0.1
    names = ("logp_theta", "logp_old", "logp_mu")
    near = {name: base - 0.05 * torch.rand(base.shape, generator=g, dtype=torch.float64) for name in names}
    given = near | {"mask": base < -0.2, "advantage": torch.randn(8, generator=g, dtype=torch.float64)}
    here = {name: x.to(device) for name, x in given.items()}
    return UnreadStats(**here | {"logp_theta": here["logp_theta"].requires_grad_()})


@pytest.fixture
def synchronising():
    """Sets what happens where the host waits for the device."""
    yield torch.cuda.set_sync_debug_mode
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["minirl", "gspo", "vespo", "m2po", "mis"])
def test_the_host_waits_once(synchronising, name):
    method = Method(fo.recipe(name))
    expected = method(stats("cpu")).read()
    given = stats("cuda")
    method(given).loss.backward()  # what is made once, as a handle of a library, may wait
    synchronising("error")
    out = method(given)
    out.loss.backward()
    synchronising("warn")
    with warnings.catch_warnings(record=True) as waited:
        warnings.simplefilter("always")
        numbers = out.read()
    assert len(waited) == 1
    assert numbers == pytest.approx(expected, rel=1e-9, abs=1e-12)
