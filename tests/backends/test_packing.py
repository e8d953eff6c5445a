import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from firstorder.backends.torchtitan.packing import chunks, pack
from firstorder.core.errors import DataError

WIDTH = 12
LENGTHS = st.lists(st.integers(1, WIDTH), min_size=1, max_size=20)


def batch_of(lengths):
    longest = max(lengths)
    tokens = torch.arange(1, len(lengths) * longest + 1).view(len(lengths), longest)
    sizes = torch.tensor(lengths)
    return torch.where(torch.arange(longest) < sizes[:, None], tokens, 0), sizes


@given(LENGTHS)
def test_what_is_packed_comes_back(lengths):
    tokens, sizes = batch_of(lengths)
    packed = pack(tokens, sizes, WIDTH)
    assert torch.equal(packed.batch(packed.tokens, 0), tokens)
    values = torch.stack([tokens, -tokens], dim=-1)
    back = packed.batch(packed.rows(values, 7), 0)
    assert torch.equal(back, values)


@given(LENGTHS)
def test_every_document_counts_its_positions_from_zero(lengths):
    tokens, sizes = batch_of(lengths)
    packed = pack(tokens, sizes, WIDTH)
    within = torch.arange(tokens.shape[1]).expand_as(tokens)
    here = packed.place >= 0
    assert torch.equal(packed.batch(packed.positions, 0)[here], within[here])
    starts = int((packed.positions == 0).sum())
    assert starts == len(lengths) + packed.tokens.numel() - sum(lengths)  # what is left over is documents of one token


@given(LENGTHS, st.integers(1, 4))
def test_chunks_cover_the_batch_in_order_and_keep_to_their_rows(lengths, rows):
    tokens, sizes = batch_of(lengths)
    found = chunks(sizes, WIDTH, rows)
    assert [i for cut in found for i in range(cut.start, cut.stop)] == list(range(len(lengths)))
    for cut in found:
        assert cut.stop > cut.start
        assert len(pack(tokens[cut], sizes[cut], WIDTH).tokens) <= rows


def test_gradients_come_back_through_packing():
    tokens, sizes = batch_of([3, 12, 5])
    packed = pack(tokens, sizes, WIDTH)
    x = torch.randn(packed.tokens.shape, requires_grad=True)
    packed.batch(x, 0.0).sum().backward()
    assert torch.equal(packed.batch(x.grad, 0.0), (packed.place >= 0).float())
    assert x.grad.sum() == 20


def test_a_response_longer_than_a_row_is_refused():
    with pytest.raises(DataError, match=r"13 tokens does not fit into a row of torchtitan.pack_length = 12; raise it"):
        pack(*batch_of([13]), WIDTH)
