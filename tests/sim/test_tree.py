import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.errors import SizeError
from firstorder.sim.config import Sim
from firstorder.sim.exact.forward import along
from firstorder.sim.exact.scene import engines, grow
from firstorder.sim.exact.size import bytes_needed, check_size, count
from firstorder.sim.exact.tree import episodes, plant
from firstorder.sim.exact.world import Near, gather, gather_contexts, scatter
from firstorder.sim.model import noise
from firstorder.sim.model.policy import initial_weights, load
from firstorder.sim.tasks import task_of

SIZES = [(2, 1, 1), (2, 4, 3), (3, 3, 2), (4, 1, 2), (4, 3, 1), (5, 2, 3)]


def tree_of(vocab, horizon, prompts, **more):
    sim = Sim(vocab=vocab, horizon=horizon, prompts=1, prompt_length=2, **more)
    return plant(task_of(sim), torch.arange(prompts) % sim.available)


def words(tree):
    """Response tokens of every context, level by level, children in order of (parent, token)."""
    found, level = [], [() for _ in tree.opening]
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
    assert tree.widths == tuple(prompts * (vocab - 1) ** t for t in range(horizon))
    assert tree.contexts == sum(tree.widths) == len(words(tree)) == sum(keys.shape[1] for keys in tree.hashes)
    ended = sum(tree.widths)
    assert len(tree.path) == ended + tree.widths[-1] * (vocab - 1)
    assert int(tree.cut.sum()) == tree.widths[-1] * (vocab - 1)
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
    owners = torch.cat([torch.arange(n) // (tree.vocab - 1) ** t for t, n in enumerate(tree.widths)])
    for row in range(len(tree.path)):
        length = int(tree.every.lengths[row])
        tokens = tuple(tree.every.tokens[row, :length].tolist())
        assert 0 not in tokens[:-1]
        assert bool(tree.cut[row]) == (tokens[-1] != 0)
        assert not tree.cut[row] or length == tree.horizon
        for t, edge in enumerate(tree.path[row, :length].tolist()):
            context, token = divmod(edge, tree.vocab)
            assert (known[context], token) == (tokens[:t], tokens[t])
            assert owners[context] == tree.prompt[row]
        assert not tree.path[row, length:].any()
        assert not tree.every.tokens[row, length:].any()


def test_a_context_s_key_is_the_hash_of_its_prompt_and_tokens():
    tree = tree_of(4, 3, 2)
    keys = torch.cat([keys[-1] for keys in tree.hashes])
    owners = torch.cat([torch.arange(n) // 3**t for t, n in enumerate(tree.widths)])
    for key, word, owner in zip(keys, words(tree), owners, strict=True):
        expected = noise.mix(tree.opening[owner, 0])
        for token in [tree.opening[owner, 1], *word]:
            expected = noise.combine(expected, token)
        assert key == expected
    assert len(keys.unique()) == tree.contexts


@given(st.sampled_from(SIZES), st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_scatter_is_the_adjoint_of_gather(size, seed):
    tree = tree_of(*size)
    edges, values = normal(2, tree.contexts, tree.vocab, seed=seed), normal(2, *tree.path.shape, seed=seed + 1)
    left, right = (
        (gather(edges, tree.every) * values).sum((1, 2)),
        (edges * scatter(values, tree.every, tree.contexts)).sum((1, 2)),
    )
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_gathering_is_looking_up_and_zero_off_the_mask():
    tree = tree_of(3, 3, 2)
    edges, contexts = normal(2, tree.contexts, 3), normal(2, tree.contexts, seed=1)
    along, at = gather(edges, tree.every), gather_contexts(contexts, tree.every)
    for row, t in itertools.product(range(len(tree.path)), range(3)):
        on = bool(tree.mask[row, t])
        context, token = divmod(int(tree.path[row, t]), 3)
        assert torch.equal(along[:, row, t], edges[:, context, token] * on)
        assert torch.equal(at[:, row, t], contexts[:, context] * on)


def test_scatter_ignores_what_is_off_the_mask():
    tree = tree_of(3, 3, 1)
    values = normal(1, *tree.path.shape)
    assert torch.equal(
        scatter(values.masked_fill(~tree.mask, torch.nan), tree.every, tree.contexts),
        scatter(values, tree.every, tree.contexts),
    )


@pytest.mark.parametrize("size", SIZES)
def test_contexts_are_reached_with_the_chance_of_the_responses_through_them(size):
    tree = tree_of(*size)
    logp = normal(2, tree.contexts, tree.vocab).log_softmax(-1)
    chance = gather(logp, tree.every).sum(-1).exp() / tree.prompts
    expected = torch.zeros(2, tree.contexts, dtype=torch.float64)
    for row, t in tree.mask.nonzero().tolist():
        expected[:, tree.path[row, t] // tree.vocab] += chance[:, row]
    found = tree.visits(logp.exp())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(found[:, : tree.prompts].sum(-1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(found.sum(-1), (chance * tree.every.lengths).sum(-1))


# The sums of `World`, each against one explicit sum over the responses; kernels are any non-negative numbers.


def kernel(tree, seed):
    return normal(2, tree.contexts, tree.vocab, seed=seed).exp()


def every(tree):
    """(edges, prompt, rank of the reward) of each response, as Python numbers."""
    ranks = {level: rank for rank, level in enumerate(tree.levels.tolist())}
    for row, length in enumerate(tree.every.lengths.tolist()):
        edges = [divmod(edge, tree.vocab) for edge in tree.path[row, :length].tolist()]
        yield edges, int(tree.prompt[row]), ranks[float(tree.every.rewards[row])]


def product(kernel, edges):
    """Π K over some edges, `[M]`; 1 over none."""
    total = torch.ones(len(kernel), dtype=torch.float64)
    for context, token in edges:
        total = total * kernel[:, context, token]
    return total


def close(found, expected):
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))


def test_the_levels_of_a_tree_are_its_distinct_rewards():
    tree = tree_of(4, 3, 2, reward="graded")
    assert tree.levels.tolist() == sorted(set(tree.every.rewards.tolist())) == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_earned_is_a_sum_over_responses(size, by_length):
    tree = tree_of(*size, reward="graded")
    mass, f = kernel(tree, 1), normal(tree.horizon + 1, seed=2) if by_length else None
    expected = torch.zeros(2, len(tree.levels), tree.prompts, dtype=torch.float64)
    for edges, prompt, rank in every(tree):
        expected[:, rank, prompt] += product(mass, edges) * (1 if f is None else f[len(edges)])
    close(tree.earned(mass, f), expected)
    close(tree.log_mass(mass), tree.earned(mass).sum(1).mean(-1).log())


@pytest.mark.parametrize("steps", [None, 1, 2])
@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_what_passes_an_edge_is_a_sum_over_the_responses_that_take_it(size, by_length, steps):
    tree = tree_of(*size, reward="graded")
    before, after, ahead = (kernel(tree, seed) for seed in (1, 2, 3))
    worth = normal(2, 3, len(tree.levels), tree.prompts, seed=4)
    f = normal(tree.horizon + 1, seed=5) if by_length else None
    expected = torch.zeros(2, 3, tree.contexts, tree.vocab, dtype=torch.float64)
    for edges, prompt, rank in every(tree):
        scale = worth[:, :, rank, prompt] * (1 if f is None else f[len(edges)]) / tree.prompts
        for t, (context, token) in enumerate(edges):
            split = t + 1 + (steps or 0)
            around = product(before, edges[:t]) * product(ahead, edges[t + 1 : split]) * product(after, edges[split:])
            expected[:, :, context, token] += scale * around[:, None]
    near = None if steps is None else Near(kernel=ahead, steps=steps)
    close(tree.through(before, after, worth, f, near), expected)


@pytest.mark.parametrize("size", SIZES)
def test_visits_and_their_sums_by_step_are_those_of_the_responses_through_each_context(size):
    """Of a policy; of any other kernel a context is as likely as the tokens that lead to it make it."""
    tree = tree_of(*size)
    policy, mass, x = kernel(tree, 1), kernel(tree, 2), normal(2, tree.contexts, seed=3)
    policy = policy / policy.sum(-1, keepdim=True)
    reached, products = (torch.zeros(2, tree.contexts, dtype=torch.float64) for _ in range(2))
    steps = torch.zeros(2, tree.horizon, dtype=torch.float64)
    for edges, _, _ in every(tree):
        for t, (context, _) in enumerate(edges):
            reached[:, context] += product(policy, edges) / tree.prompts
            products[:, context] = product(mass, edges[:t]) / tree.prompts
            steps[:, t] += product(policy, edges) / tree.prompts * x[:, context]
    close(tree.visits(policy), reached)
    close(tree.visits(mass), products)
    close(tree.by_step(policy, x), steps)


@pytest.mark.parametrize("size", SIZES)
def test_an_expansion_is_a_sum_over_responses_and_sets_of_their_tokens(size):
    tree = tree_of(*size, reward="graded")
    mass, change, order = kernel(tree, 1), normal(2, tree.contexts, tree.vocab, seed=2), 3
    expected = torch.zeros(2, order + 1, dtype=torch.float64)
    for edges, _, rank in every(tree):
        earned = product(mass, edges) * tree.levels[rank] / tree.prompts
        for k in range(order + 1):
            for chosen in itertools.combinations(edges, k):
                expected[:, k] += earned * product(change, chosen)
    close(tree.expansion(mass, change, order), expected)


@pytest.mark.parametrize("change", [{}, {"task": "guess", "vocab": 4}, {"vocab": 2}, {"horizon": 1}], ids=str)
def test_rows_that_are_run_are_those_before_each_token_of_the_responses(change):
    """Every row with the experts before it, weighed as often as responses run it; the last token is not run."""
    sim = Sim(**({"vocab": 3, "horizon": 3, "prompts": 1, "layers": 2, "experts": 4, "width": 4} | change))
    tree = grow(sim)
    model = load(initial_weights(sim, torch.tensor([5])), engines(sim, torch.arange(1)).mu, sim)
    with torch.no_grad():
        done = tree.run(model)
    found = tree.run_rows(done.routes, done.logp.exp())
    chance = tree.every.measure(done.logp, tree.prompts)[0]
    expected, along_it = Counter(), along(done.routes, tree, tree.every)[0]
    for row, length in enumerate(episodes(tree, tree.every).lengths.tolist()):
        previous = torch.full_like(along_it[row, 0], -1)
        for experts in along_it[row, : length - 1]:
            expected[str((experts.tolist(), previous.tolist()))] += float(chance[row])
            previous = experts
    counted = Counter()
    for ids, before, weight in zip(found.ids[0], found.before[0], found.weight[0], strict=True):
        counted[str((ids.tolist(), before.tolist()))] += float(weight)
    assert counted == pytest.approx(expected, rel=1e-12)
    assert found.ids.shape[1] == sum(lead.numel() for lead in tree.leads)


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
