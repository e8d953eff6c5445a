import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import made

from firstorder.core.audit import seen
from firstorder.core.audit.seen import Seen
from firstorder.core.formats.chunk import pad
from firstorder.core.routing import flips, jaccard
from firstorder.core.training.replay import run_rows


@given(st.integers(0, 10_000), st.integers(1, 9), st.sampled_from([torch.int8, torch.int16, torch.int32]))
@settings(max_examples=40, deadline=None)
def test_rows_read_as_wide_integers_are_the_same_rows(seed, top_k, kind):
    g = torch.Generator().manual_seed(seed)
    a = torch.randint(-1, 3, (5, 4, top_k), generator=g).to(kind)
    b = torch.where(torch.rand(5, 4, 1, generator=g) < 0.5, a, torch.randint(-1, 3, a.shape, generator=g).to(kind))
    assert torch.equal(seen.present(a), (a >= 0).all(-1))
    assert torch.equal(seen.same(a, b), (a == b).all(-1))
    assert torch.equal(seen.same(a, a[:, :1]), (a == a[:, :1]).all(-1))


@pytest.mark.parametrize("top_k", [1, 2, 3, 6, 8])
def test_flips_and_overlaps_are_those_of_all_rows(top_k, monkeypatch):
    monkeypatch.setattr(seen, "PIECE", 7)
    g = torch.Generator().manual_seed(top_k)
    a, b = (torch.rand(3, 11, 4, 12, generator=g).topk(top_k).indices.short() for _ in range(2))
    b = torch.where(torch.rand(3, 11, 4, 1, generator=g) < 0.6, a.flip(-1), b)  # the same set in another order
    a[torch.rand(3, 11, 4, generator=g) < 0.1] = -1
    b[torch.rand(3, 11, 4, generator=g) < 0.1] = -1
    run = run_rows(torch.tensor([11, 7, 2]), 11)
    found = seen.compared(a, b, run, torch.ones(3, 11, dtype=torch.bool))
    there = (a >= 0).all(-1) & (b >= 0).all(-1) & run[..., None]
    assert torch.equal(found.there, there)
    assert torch.equal(found.flipped, flips(a, b) & there)
    torch.testing.assert_close(found.overlap, torch.where(there, jaccard(a, b), 0.0).double(), atol=1e-6, rtol=0)


def test_a_row_belongs_to_the_token_after_it():
    chunk = pad(made(count=3))
    found = Seen(chunk=chunk).agreement
    for row, position in chunk.mask.nonzero().tolist():
        flipped = flips(chunk.routes[row, position - 1], chunk.routes_old[row, position - 1]).double().mean()
        assert float(found.share_flipped[row, position]) == pytest.approx(float(flipped))
    assert not found.share_flipped[~chunk.mask].any()
    by_layer = found.per_response(found.flipped)
    assert float(by_layer.sum()) == pytest.approx(float(found.share_flipped.sum()) * 3)


def test_turns_are_stretches_of_the_mask():
    mask = torch.tensor([[0, 1, 1, 0, 1, 0, 0, 1]], dtype=torch.bool)

    class Chunk:
        pass

    chunk = Chunk()
    chunk.mask = mask
    found = Seen(chunk=chunk)
    assert found.turn[mask].tolist() == [1, 1, 2, 3]
    assert found.rank[mask].tolist() == [1, 2, 3, 4]


def test_routes_of_different_sizes_are_not_compared():
    chunk = pad(made(count=2))
    object.__setattr__(chunk, "routes_old", chunk.routes_old[..., :1])
    assert Seen(chunk=chunk).agreement is None
