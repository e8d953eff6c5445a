import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.errors import SizeError
from firstorder.sim.config import Sim
from firstorder.sim.exact.tree import bytes_needed, check_size, count, gather, gather_contexts, plant, reach, scatter
from firstorder.sim.model import noise
from firstorder.sim.tasks import task_of

SIZES = [(2, 1, 1), (2, 4, 3), (3, 3, 2), (4, 1, 2), (4, 3, 1), (5, 2, 3)]


def tree_of(vocab, horizon, prompts):
    sim = Sim(vocab=vocab, horizon=horizon, prompts=1, prompt_length=2)
    return plant(task_of(sim), torch.arange(prompts) % sim.available)


def words(tree):
    """Response tokens of every context, level by level, children in order of (parent, token)."""
    found, level = [], [() for _ in tree.prompts]
    for _ in range(tree.horizon):
        found += level
        level = [(*word, token) for word in level for token in range(1, tree.vocab)]
    return found


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES)
def test_counts_are_those_of_the_tree(size):
    vocab, horizon, prompts = size
    tree = tree_of(*size)
    assert tree.levels == tuple(prompts * (vocab - 1) ** t for t in range(horizon))
    assert tree.contexts == sum(tree.levels) == len(words(tree)) == sum(keys.shape[1] for keys in tree.keys)
    ended = sum(tree.levels)
    assert len(tree.path) == ended + tree.levels[-1] * (vocab - 1)
    assert int(tree.cut.sum()) == tree.levels[-1] * (vocab - 1)
    assert torch.bincount(tree.prompt).tolist() == [len(tree.path) // prompts] * prompts


@pytest.mark.parametrize("size", SIZES)
def test_the_count_is_known_without_planting(size):
    vocab, horizon, prompts = size
    sim = Sim(vocab=vocab, horizon=horizon, prompts=min(prompts, vocab - 1), prompt_length=2)
    assert count(sim) == sim.prompts * sum((vocab - 1) ** t for t in range(horizon))


@pytest.mark.parametrize("size", SIZES)
def test_a_path_walks_through_the_contexts_of_its_own_tokens(size):
    tree = tree_of(*size)
    known = words(tree)
    owners = torch.cat([torch.arange(n) // (tree.vocab - 1) ** t for t, n in enumerate(tree.levels)])
    for row in range(len(tree.path)):
        length = int(tree.lengths[row])
        tokens = tuple(tree.tokens[row, :length].tolist())
        assert 0 not in tokens[:-1]
        assert bool(tree.cut[row]) == (tokens[-1] != 0)
        assert not tree.cut[row] or length == tree.horizon
        for t, edge in enumerate(tree.path[row, :length].tolist()):
            context, token = divmod(edge, tree.vocab)
            assert (known[context], token) == (tokens[:t], tokens[t])
            assert owners[context] == tree.prompt[row]
        assert not tree.path[row, length:].any()
        assert not tree.tokens[row, length:].any()


def test_a_context_s_key_is_the_hash_of_its_prompt_and_tokens():
    tree = tree_of(4, 3, 2)
    keys = torch.cat([keys[-1] for keys in tree.keys])
    owners = torch.cat([torch.arange(n) // 3**t for t, n in enumerate(tree.levels)])
    for key, word, owner in zip(keys, words(tree), owners, strict=True):
        expected = noise.mix(tree.prompts[owner, 0])
        for token in [tree.prompts[owner, 1], *word]:
            expected = noise.combine(expected, token)
        assert key == expected
    assert len(keys.unique()) == tree.contexts


@given(st.sampled_from(SIZES), st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_scatter_is_the_adjoint_of_gather(size, seed):
    tree = tree_of(*size)
    edges, values = normal(2, tree.contexts, tree.vocab, seed=seed), normal(2, *tree.path.shape, seed=seed + 1)
    left, right = (gather(edges, tree) * values).sum((1, 2)), (edges * scatter(values, tree)).sum((1, 2))
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_gathering_is_looking_up_and_zero_off_the_mask():
    tree = tree_of(3, 3, 2)
    edges, contexts = normal(2, tree.contexts, 3), normal(2, tree.contexts, seed=1)
    along, at = gather(edges, tree), gather_contexts(contexts, tree)
    for row, t in itertools.product(range(len(tree.path)), range(3)):
        on = bool(tree.mask[row, t])
        context, token = divmod(int(tree.path[row, t]), 3)
        assert torch.equal(along[:, row, t], edges[:, context, token] * on)
        assert torch.equal(at[:, row, t], contexts[:, context] * on)


def test_scatter_ignores_what_is_off_the_mask():
    tree = tree_of(3, 3, 1)
    values = normal(1, *tree.path.shape)
    assert torch.equal(scatter(values.masked_fill(~tree.mask, torch.nan), tree), scatter(values, tree))


@pytest.mark.parametrize("size", SIZES)
def test_contexts_are_reached_with_the_chance_of_the_responses_through_them(size):
    tree = tree_of(*size)
    logp = normal(2, tree.contexts, tree.vocab).log_softmax(-1)
    chance = gather(logp, tree).sum(-1).exp() / len(tree.prompts)
    expected = torch.zeros(2, tree.contexts, dtype=torch.float64)
    for row, t in tree.mask.nonzero().tolist():
        expected[:, tree.path[row, t] // tree.vocab] += chance[:, row]
    found = reach(logp, tree)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(found[:, : len(tree.prompts)].sum(-1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(found.sum(-1), (chance * tree.lengths).sum(-1))


@pytest.mark.parametrize("vocab", [2, 3, 5])
@pytest.mark.parametrize("members", [1, 7])
def test_a_tree_that_does_not_fit_is_refused_with_the_longest_horizon_that_does(vocab, members):
    sim = Sim(vocab=vocab, horizon=12, prompts=1)
    limit = bytes_needed(sim.model_copy(update={"horizon": 7}), members)
    with pytest.raises(SizeError, match=r"contexts at sim\.horizon = 12.*lower sim\.horizon to 7,"):
        check_size(sim, members, limit)
    check_size(sim.model_copy(update={"horizon": 7}), members, limit)
    with pytest.raises(SizeError, match=r"lower sim\.horizon to 6,"):
        check_size(sim, members, limit - 1)
    assert issubclass(SizeError, MemoryError)


def test_no_horizon_is_named_where_none_fits():
    with pytest.raises(SizeError) as caught:
        check_size(Sim(), 1, 1000)
    assert "lower sim.horizon" not in str(caught.value)


@pytest.mark.parametrize("horizon", [100, 1000, 20_000])
def test_an_absurd_tree_is_refused_in_one_line(horizon):
    with pytest.raises(SizeError, match=r"lower sim.horizon to \d+,") as caught:
        check_size(Sim(horizon=horizon), 1, 8 << 30)
    assert "\n" not in str(caught.value)


def test_bytes_grow_with_everything_that_is_held():
    base = bytes_needed(Sim(), 1)
    for change in ({"horizon": 6}, {"vocab": 5}, {"prompts": 5}, {"width": 32}, {"layers": 3}, {"experts": 9}):
        assert bytes_needed(Sim(**change), 1) > base
    assert bytes_needed(Sim(), 2) > base
