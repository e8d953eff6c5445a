from dataclasses import replace

import pytest
import torch
from made import made

from firstorder.core.errors import DataError
from firstorder.core.formats.decided import decided
from firstorder.core.formats.format import Options


def test_layers_are_chosen_from_both_routes():
    sample = made()[0]
    chosen = decided(sample, Options(layers=(1, 2)))
    assert torch.equal(chosen.routes, sample.routes[:, 1:])
    assert torch.equal(chosen.routes_old, sample.routes_old[:, 1:])


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(DataError, match="made step 0 sample 0: --layers names layer 3, and the routes hold 3 layers"):
        decided(made()[0], Options(layers=(3,)))


@pytest.mark.parametrize(("fill", "row"), [("zeros", [0, 0]), ("arange", [0, 1])])
def test_rows_that_are_a_fill_become_missing(fill, row):
    sample = made()[0]
    ids = sample.routes.clone()
    ids[ids.sort(-1).values[..., 0] == 0] = torch.tensor([5, 6], dtype=ids.dtype)
    ids[2] = torch.tensor(row, dtype=ids.dtype)
    done = decided(replace(sample, routes=ids), Options(fill=fill)).routes
    assert (done[2] == -1).all()
    assert torch.equal(torch.cat([done[:2], done[3:]]), torch.cat([ids[:2], ids[3:]]))
    assert decided(replace(sample, routes=ids), Options()).routes is ids
