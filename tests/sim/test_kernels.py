"""The kernels whose gradients are written out, beside the formulas that autograd differentiates."""

import pytest
import torch

from firstorder.core.softmax import log_softmax, softmax
from firstorder.sim.model.experts import all_experts, block_size, blocks, chosen, fills
from firstorder.sim.model.norm import unit

ROWS = {
    "unit": (unit, lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()),
    "softmax": (softmax, lambda x: x.softmax(-1)),
    "log_softmax": (log_softmax, lambda x: x.log_softmax(-1)),
}
EVERY = pytest.mark.parametrize(("fast", "plain"), ROWS.values(), ids=ROWS)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def given(members=2, prefixes=9, width=3, experts=4, inner=2, top_k=2, seed=0):
    """x, gates, up and down that require grad, and ids."""
    gates = normal(members, prefixes, top_k, seed=seed + 1).softmax(-1)
    up, down = (
        normal(members, experts, width, inner, seed=seed + 2),
        normal(members, experts, inner, width, seed=seed + 3),
    )
    ids = normal(members, prefixes, experts, seed=seed + 4).topk(top_k).indices
    return *(t.requires_grad_() for t in (normal(members, prefixes, width, seed=seed), gates, up, down)), ids


def slopes(out, leaves):
    return torch.autograd.grad((out * normal(*out.shape, seed=9)).sum(), leaves)


@EVERY
def test_rows_are_their_formula_in_value_and_gradient(fast, plain, same):
    x = (3 * normal(2, 40, 8)).requires_grad_()
    same(fast(x).detach(), plain(x).detach())
    same(slopes(fast(x), [x])[0], slopes(plain(x), [x])[0])


@EVERY
def test_gradients_of_rows_can_be_differentiated(fast, plain):
    x = normal(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(fast, [x])
    assert torch.autograd.gradgradcheck(fast, [x])


def test_a_row_of_zeros_stays_zero():
    assert torch.equal(unit(torch.zeros(2, 3, dtype=torch.float64)), torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("fast", [softmax, log_softmax])
def test_large_numbers_do_not_overflow_and_low_precision_stays_with_torch(fast):
    assert fast(torch.tensor([[1e4, -1e4]], dtype=torch.float64)).isfinite().all()
    low = normal(5, 8).to(torch.bfloat16)
    assert torch.equal(fast(low), getattr(low, fast.__name__)(-1))


@pytest.mark.parametrize(("prefixes", "experts", "top_k"), [(1, 2, 1), (9, 4, 2), (200, 8, 2), (700, 5, 3), (40, 3, 3)])
def test_the_chosen_alone_say_what_all_experts_say_with_gates_of_zero(prefixes, experts, top_k, same):
    *leaves, ids = given(prefixes=prefixes, experts=experts, top_k=top_k)
    found = chosen(*leaves[:2], ids, *leaves[2:])
    expected = all_experts(*leaves, ids)
    same(found.detach(), expected.detach())
    for a, b in zip(slopes(found, leaves), slopes(expected, leaves), strict=True):
        same(a, b)
    with torch.no_grad():
        assert torch.equal(chosen(*leaves[:2], ids, *leaves[2:]), found)


def test_gradients_of_the_chosen_can_be_differentiated():
    *leaves, ids = given(prefixes=5)

    def run(x, gates, up, down):
        return chosen(x, gates, ids, up, down)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_a_member_has_the_same_bits_alone_and_beside_others():
    *leaves, ids = given(members=3, prefixes=150, width=16, inner=16, experts=8)
    ids[1] = torch.tensor([5, 2])  # one that sends every token to the same experts
    together = chosen(*leaves[:2], ids, *leaves[2:])
    slope = normal(*together.shape, seed=9)
    found = torch.autograd.grad((together * slope).sum(), leaves)
    for member in range(3):
        cut = slice(member, member + 1)
        own = [leaf.detach()[cut].clone().requires_grad_() for leaf in leaves]
        alone = chosen(*own[:2], ids[cut], *own[2:])
        assert torch.equal(alone, together[cut])
        for a, b in zip(torch.autograd.grad((alone * slope[cut]).sum(), own), found, strict=True):
            assert torch.equal(a, b[cut])


@pytest.mark.parametrize("same_experts", [False, True])
def test_every_row_stands_in_a_block_of_each_of_its_experts(same_experts):
    members, prefixes, experts, top_k = 2, 300, 8, 3
    ids = normal(members, prefixes, experts).topk(top_k).indices
    if same_experts:
        ids[:] = torch.tensor([7, 0, 4])
    to = blocks(ids, experts)
    assert to.size == block_size(prefixes, top_k, experts)
    assert len(to.rows) == to.size * len(to.expert)
    assert to.places.unique().numel() == members * prefixes * top_k
    assert torch.equal(to.rows[to.places], torch.arange(members * prefixes).expand(top_k, -1))
    found = to.expert[to.places // to.size].t().reshape(ids.shape)
    assert torch.equal(found, ids + experts * torch.arange(members)[:, None, None])


def test_few_tokens_run_through_all_experts():
    assert not fills(torch.zeros(64, 63, 2), 8)
    assert fills(torch.zeros(1, 64, 2), 8)
