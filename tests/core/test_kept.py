"""The sampling mask of a batch: what is scored over it, its receipts, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.errors import DataError
from firstorder.core.training import kept
from firstorder.core.training.batch import RolloutBatch

V = 6


def rows(seed, count=5, width=4):
    """Random scores, and rows of kept ids of which some name none."""
    g = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(count, V, generator=g, dtype=torch.float64)
    ids = torch.stack([torch.randperm(V, generator=g)[:width] for _ in range(count)])
    sizes = torch.randint(0, width + 1, (count, 1), generator=g)
    return scores, torch.where(torch.arange(width) < sizes, ids, -1).int()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_totals_and_entropies_are_those_of_the_softmax_over_what_is_kept(seed):
    scores, ids = rows(seed)
    inside, whole = kept.totals(scores, ids)
    entropies = kept.entropy(scores, ids)
    for x, row, total, entropy in zip(scores, ids, inside, entropies, strict=True):
        names = [i for i in row.tolist() if i >= 0] or list(range(V))
        masses = [math.exp(x[i]) for i in names]
        assert float(total) == pytest.approx(math.log(sum(masses)), rel=1e-12, abs=1e-12)
        shares = [m / sum(masses) for m in masses]
        assert float(entropy) == pytest.approx(-sum(p * math.log(p) for p in shares), rel=1e-9, abs=1e-12)
    assert torch.equal(whole, scores.logsumexp(-1))


def test_gradients_reach_kept_tokens_alone_and_are_never_nan():
    scores, ids = rows(3)
    ids[0] = -1
    scores.requires_grad_()
    inside, _ = kept.totals(scores, ids)
    inside.sum().backward()
    for row, slope in zip(ids, scores.grad, strict=True):
        named = {i for i in row.tolist() if i >= 0} or set(range(V))
        assert {i for i in range(V) if slope[i] != 0} == named
        assert float(slope.sum()) == pytest.approx(1.0)


def batch(**changes):
    """Two responses of two and one tokens after a prompt of one."""
    fields = {
        "tokens": torch.tensor([[1, 3, 0], [1, 2, 0]]),
        "mask": torch.tensor([[False, True, True], [False, True, False]]),
        "lengths": torch.tensor([3, 2]),
        "logp_mu": torch.tensor([[0.0, -1.0, -1.0], [0.0, -1.0, 0.0]], dtype=torch.float64),
        "rewards": torch.tensor([1.0, 0.0]),
        "groups": torch.tensor([0, 0]),
        "kept": torch.tensor([[[-1, -1], [3, 2], [0, -1]], [[-1, -1], [-1, -1], [-1, -1]]], dtype=torch.int32),
    }
    return RolloutBatch(**(fields | changes))


def test_receipts_count_the_tokens_that_were_truncated_and_what_was_kept():
    one = batch()
    outside = torch.tensor([[9.0, 0.2, 0.1], [9.0, 0.0, 9.0]])
    found = {name: float(a / b) for name, (a, b) in kept.masked(one.kept, one.mask, outside).items()}
    assert found == pytest.approx({"mask/tokens_truncated": 2 / 3, "mask/kept": 1.5, "mask/mass_outside": 0.1})
    assert set(found) == set(kept.QUANTITIES)
    assert kept.masked(None, one.mask, outside) == {}


@pytest.mark.parametrize(
    ("where", "row", "message"),
    [
        ((0, 1), [2, 1], "`kept` must hold the token that was sampled, got 1 rows without it, the first at [0, 1]"),
        ((0, 0), [1, -1], "`kept` must be -1 where `mask` is False"),
        ((0, 1), [3, 3], "`kept` must name a token once in a row"),
    ],
)
def test_a_mask_of_other_responses_is_refused(where, row, message):
    wrong = batch().kept.clone()
    wrong[where] = torch.tensor(row, dtype=torch.int32)
    with pytest.raises(DataError) as error:
        batch(kept=wrong)
    assert message in str(error.value)


def test_a_mask_of_another_shape_or_dtype_is_refused():
    with pytest.raises(DataError, match=r"`kept` must be \[2, 3, tokens kept\], got \[2, 2, 2\]"):
        batch(kept=batch().kept[:, :2])
    with pytest.raises(DataError, match=r"`kept` must be int32 token ids, got torch.int64"):
        batch(kept=batch().kept.long())


def test_a_mask_goes_with_its_responses():
    whole = batch()
    part = replace(whole, **{n: x[1:] for n, x in vars(whole).items() if isinstance(x, torch.Tensor)})
    assert torch.equal(part.kept, whole.kept[1:])
