"""Contexts that merge: tables that cannot be, walks, distinct successors, and the value of a policy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.errors import ConfigError, DataError
from firstorder.sim.tasks.contexts import Contexts, check_reached
from firstorder.sim.tasks.value import value

# two contexts and two endings: token 0 ends (badly at context 0, well at 1), token 1 goes on, token 2 goes back
SMALL = {"start": [0, 1], "follow": [[2, 1, 0], [3, 1, 0]], "ends": [0.0, 1.0], "cut": [0.0, 0.25]}


def table(**changes):
    given = SMALL | changes
    size = len(given["follow"])
    return Contexts(
        features=torch.eye(size, dtype=torch.float64),
        keys=torch.arange(size),
        start=torch.tensor(given["start"]),
        follow=torch.tensor(given["follow"]),
        ends=torch.tensor(given["ends"], dtype=torch.float64),
        cut=torch.tensor(given["cut"], dtype=torch.float64),
    )


def drawn(generator, size, vocab, endings):
    """A table of that size with anything in it."""
    return Contexts(
        features=torch.eye(size, dtype=torch.float64),
        keys=torch.arange(size),
        start=torch.randint(0, size, (2,), generator=generator),
        follow=torch.randint(0, size + endings, (size, vocab), generator=generator),
        ends=torch.rand(endings, generator=generator, dtype=torch.float64),
        cut=torch.rand(size, generator=generator, dtype=torch.float64),
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"follow": [[2, 1, 0], [3, 4, 0]]}, DataError, "one of 2 contexts or 2 endings, got 4 at context 1, token 1"),
        ({"follow": [[2, -1, 0], [3, 1, 0]]}, DataError, "got -1 at context 0, token 1; number them from 0 to 3"),
        ({"start": [0, 2]}, DataError, r"`start` must name one of 2 contexts, got \[0, 2\]"),
        ({"ends": [0.5, 0.5], "cut": [0.5, 0.5]}, ConfigError, "every response earns 0.5"),
    ],
)
def test_a_table_that_cannot_be_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        table(**changes)


def test_a_reward_that_no_token_leads_to_is_refused():
    assert check_reached(table()) is not None
    stuck = table(follow=[[2, 2, 0], [3, 1, 0]], start=[0, 0])  # nobody leaves context 0 but to the ending that pays 0
    with pytest.raises(ConfigError, match="no token leads to another reward than 0, so there is nothing to learn"):
        check_reached(stuck)


def test_a_walk_written_out():
    tokens = torch.tensor([[1, 1, 2, 1], [1, 0, 0, 0], [0, 2, 1, 1], [2, 2, 2, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    start = torch.tensor([0, 0, 1, 1])
    assert table().walk(start, tokens, mask).tolist() == [[0, 1, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    end = table().end(start, tokens, mask)
    assert end.tolist() == [1, 3, 3, 2]
    assert table().rewards[end].tolist() == [0.25, 1.0, 1.0, 0.0]


def test_who_has_said_nothing_stands_at_the_start():
    none = torch.zeros(2, 3, dtype=torch.int64)
    assert table().end(torch.tensor([1, 0]), none, none.bool()).tolist() == [1, 0]
    assert table().end(torch.tensor([1, 0]), none[:, :1], none[:, :1].bool()).tolist() == [1, 0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(2, 7), st.integers(1, 3))
def test_walks_follow_the_table_one_token_at_a_time(seed, size, vocab, endings):
    generator = torch.Generator().manual_seed(seed)
    contexts = drawn(generator, size, vocab, endings)
    tokens = torch.randint(0, vocab, (3, 4, 5), generator=generator)
    start = torch.randint(0, size, (3, 4), generator=generator)
    mask, expected, ends = torch.zeros(3, 4, 5).bool(), torch.zeros(3, 4, 5, dtype=torch.int64), start.clone()
    for i in range(3):
        for j in range(4):
            at = int(start[i, j])
            for k, token in enumerate(tokens[i, j].tolist()):
                if at < size:
                    mask[i, j, k], expected[i, j, k] = True, at
                    at = int(contexts.follow[at, token])
            ends[i, j] = at
    assert torch.equal(contexts.walk(start, tokens, mask), expected)
    assert torch.equal(contexts.end(start, tokens, mask), ends)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(2, 7), st.integers(1, 3))
def test_branches_are_the_distinct_places_with_all_their_tokens(seed, size, vocab, endings):
    generator = torch.Generator().manual_seed(seed)
    contexts = drawn(generator, size, vocab, endings)
    branches = contexts.branches
    assert torch.equal(branches.place.gather(-1, branches.which), contexts.follow)
    p = torch.rand(2, size, vocab, generator=generator, dtype=torch.float64)
    mass = branches.collapse(p)
    for c in range(size):
        found = contexts.follow[c].unique().tolist()
        assert branches.place[c, : len(found)].tolist() == found
        assert not mass[:, c, len(found) :].any()
        for u, place in enumerate(found):
            expected = p[:, c, contexts.follow[c] == place].sum(-1)
            torch.testing.assert_close(mass[:, c, u], expected, rtol=1e-14, atol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(2, 3), st.integers(0, 2), st.integers(1, 4))
def test_a_value_is_the_mean_over_all_responses(seed, size, vocab, endings, horizon):
    generator = torch.Generator().manual_seed(seed)
    contexts = drawn(generator, size, vocab, max(endings, 1))
    if not endings:
        contexts = Contexts(**(vars(contexts) | {"follow": contexts.follow.clamp(max=size - 1)}))
    logp = torch.randn(2, size, vocab, generator=generator, dtype=torch.float64).log_softmax(-1)
    for member in range(2):

        def earned(at, left, member=member):
            if at >= size or not left:
                return float(contexts.rewards[at])
            chance = logp[member, at].exp().tolist()
            return sum(p * earned(int(to), left - 1) for p, to in zip(chance, contexts.follow[at], strict=True))

        expected = sum(earned(int(c), horizon) for c in contexts.start) / 2
        assert float(value(logp, contexts, horizon)[member]) == pytest.approx(expected, rel=1e-12)


def test_a_value_at_a_horizon_of_thousands_is_a_power():
    contexts = table(follow=[[0, 1, 1], [1, 1, 1]], ends=[], cut=[1.0, 0.0], start=[0])
    stays = torch.tensor([1e-4, 1e-2], dtype=torch.float64)
    logp = torch.stack([1 - stays, stays / 2, stays / 2], dim=-1)[:, None].log().expand(-1, 2, -1)
    expected = (5000 * torch.log1p(-stays)).exp()
    torch.testing.assert_close(value(logp, contexts, 5000), expected, rtol=1e-11, atol=0)
    assert value(logp, contexts, 100_000)[1] == 0.0  # e^-1005
