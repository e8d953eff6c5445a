from functools import reduce

import pytest
import torch
from made import made

from firstorder.core.audit import cells, strata
from firstorder.core.audit.clustered import clusters, estimates, student
from firstorder.core.audit.seen import Seen
from firstorder.core.formats.chunk import chunks, pad


def means(samples, positions):
    """Of every table over parts."""
    return reduce(strata.merged, (strata.measured(Seen(chunk=chunk)) for chunk in chunks(samples, positions)))


def test_a_mean_and_its_interval_are_those_of_the_delta_method():
    g = torch.Generator().manual_seed(0)
    n, x = torch.randint(0, 5, (30, 1, 1), generator=g).double(), torch.randn(30, 1, 1, generator=g).double()
    x = torch.where(n > 0, x, 0.0)
    (found,) = cells.dense(torch.tensor([7]), ("x",), n, x).mean("x")
    block = torch.cat([x[:, 0], n[:, 0]], -1)
    expected = estimates(clusters({"x": block}), lambda sums: {"x": sums["x"][0] / sums["x"][1]})["x"]
    assert [found.value, found.low, found.high] == pytest.approx([expected.value, expected.low, expected.high])


def test_cells_are_those_of_a_loop_over_tokens():
    chunk = pad(made(count=5))
    seen = Seen(chunk=chunk)
    found = strata.measured(seen)["position"]
    for place, key in enumerate(found.keys.tolist()):
        per_response = []
        for row in range(len(chunk.mask)):
            held = [
                float(seen.d[row, t])
                for t in chunk.mask[row].nonzero()[:, 0].tolist()
                if 2**key <= int(chunk.mask[row, : t + 1].sum()) < 2 ** (key + 1)
            ]
            if held:
                per_response.append((len(held), -sum(held)))
        n, x = sum(a for a, _ in per_response), sum(b for _, b in per_response)
        mean, size = x / n, len(per_response)
        error = (sum((b - mean * a) ** 2 for a, b in per_response) * size / (size - 1)) ** 0.5 / n
        value = found.mean("kl")[place]
        assert value.value == pytest.approx(mean)
        assert value.high - mean == pytest.approx(student(size - 1) * error)


def test_cells_do_not_depend_on_the_cut():
    samples = made(count=9, steps=3)
    whole, cut = means(samples, 10**6), means(samples, 100)
    for name, each in whole.items():
        assert cut[name].keys.tolist() == each.keys.tolist()
        assert cut[name].names == each.names
        torch.testing.assert_close(cut[name].sums, each.sums)


def test_a_quantity_that_one_chunk_lacks_is_averaged_over_the_other():
    a = cells.dense(torch.tensor([0, 2]), ("x",), torch.ones(3, 2, 1).double(), torch.ones(3, 2, 1).double())
    b = cells.dense(torch.tensor([1, 2]), ("y", "x"), torch.ones(2, 2, 2).double(), 3 * torch.ones(2, 2, 2).double())
    found = cells.merged(a, b)
    assert found.keys.tolist() == [0, 1, 2]
    assert [each.value for each in found.mean("x")] == pytest.approx([1.0, 3.0, (3 + 6) / 5])
    assert [each and each.value for each in found.mean("y")] == [None, 3.0, 3.0]
    assert found.mean("z") == [None] * 3
