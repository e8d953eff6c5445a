"""`chain`: its rules by hand, its episodes by its transitions, its features and its lesson."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.tasks import Episodes
from firstorder.sim.config import Sim
from firstorder.sim.tasks import Chain, task_of
from firstorder.sim.tasks.places import OFF, ON, THOUGHT, TOLD, features, places
from firstorder.sim.tasks.task import converse

PLAIN = {"vocab": 6, "positions": 3, "right": 2, "horizon": 7}
ANSWER = PLAIN | {"ending": "answer"}
RICH = ANSWER | {"vocab": 14, "thinking": 2, "recovery": 2, "feedback": True, "turn_length": 2}
SETTINGS = {
    "plain": PLAIN,
    "recovering": PLAIN | {"recovery": 1},
    "told": PLAIN | {"recovery": 1, "feedback": True, "turn_length": 3},
    "answer": ANSWER,
    "graded": ANSWER | {"reward": "graded"},
    "thinking": ANSWER | {"vocab": 8, "thinking": 1},
    "rich": RICH,
    "rich_graded": RICH | {"reward": "graded", "shared": 0.0, "turn_length": 3},
}


def chain(**values):
    return Chain(Sim(task="chain", prompts=2, **values))


def tokens_of(task, problem, position):
    """The tokens of a problem and position in the order of their ranks."""
    rank = task.rank(torch.tensor(problem), torch.tensor(position)).tolist()
    return [rank.index(k) for k in range(len(rank))]


def slow(task, problem, said):
    """(mode, position, phase) before each token and after the last, what is earned, and what the environment says."""
    sim, mode, position, phase, answers = task.sim, "on", 0, 0, []
    visited = [(mode, position, phase)]
    for token in said:
        order = tokens_of(task, problem, position)
        right = order[: sim.right * (2 if mode == "thought" else 1)]
        after = sim.right * (2 if sim.thinking else 1)
        thinking = order[after : after + sim.thinking]
        after += sim.thinking
        recovery = order[after : after + sim.recovery * (2 if mode == "told" else 1)]
        holds = mode in ("on", "thought")
        if sim.ending == "answer" and token == 0:
            if sim.reward == "graded":
                return visited, (position + 1) / sim.positions if holds else 0.0, answers
            return visited, float(holds and position == sim.positions - 1), answers
        moves = True
        if holds and token in thinking:
            mode, moves = "thought", False
        elif token in (right if holds else recovery):
            mode = "on"
        elif holds:
            mode = "off"
        position = (position + moves) % sim.positions
        if sim.feedback:
            phase = (phase + 1) % sim.turn_length
            if phase == 0:
                answers.append(1 if mode in ("on", "thought") else 2)
                mode = "told" if mode == "off" else mode
        visited.append((mode, position, phase))
    return visited, float(sim.ending == "horizon" and mode in ("on", "thought")), answers


def responses(task, count, seed, lead=0.8):
    """Random responses of which most tokens are special, so that much of the chain is seen; and their mask."""
    sim, generator = task.sim, torch.Generator().manual_seed(seed)
    rows, said = torch.randint(0, 2, (count,), generator=generator), torch.zeros(count, sim.horizon, dtype=torch.int64)
    for i, row in enumerate(rows.tolist()):
        for t in range(sim.horizon):
            position = slow(task, row, said[i, :t].tolist())[0][-1][1]
            lucky = torch.rand((), generator=generator) < lead
            rank = torch.randint(0, sim.special if lucky else sim.vocab, (), generator=generator)
            said[i, t] = tokens_of(task, row, position)[rank]
            last = position == sim.positions - 1
            if sim.first and last and torch.rand((), generator=generator) < 0.3:
                said[i, t] = 0
    ended = (said == 0) if sim.first else torch.zeros_like(said, dtype=torch.bool)
    return rows, said, ended.cumsum(-1) - ended.long() == 0


@pytest.mark.parametrize("name", SETTINGS)
def test_responses_go_where_the_rules_written_out_say_and_earn_it(name):
    task = chain(**SETTINGS[name])
    rows, said, mask = responses(task, 40, 1)
    contexts, at = task.contexts(torch.arange(2)), places(task.sim, torch.arange(2))
    visited = contexts.walk(contexts.start[rows], said, mask)
    episodes = converse(task, rows, said, mask)
    rewards, modes, names = task.verify(episodes), set(), ["on", "off", "thought", "told"]
    heard = ~episodes.mask & (torch.arange(episodes.tokens.shape[-1]) >= 1) & (episodes.tokens > 0)
    for i, row in enumerate(rows.tolist()):
        length = int(mask[i].sum())
        expected, reward, answers = slow(task, row, said[i, :length].tolist())
        found = visited[i, :length]
        assert (at.problem[found] == row).all()
        parts = zip(at.mode[found].tolist(), at.position[found].tolist(), at.phase[found].tolist(), strict=True)
        assert [(names[m], q, f) for m, q, f in parts] == expected[:length]
        assert float(rewards[i]) == pytest.approx(reward, rel=1e-15)
        spoken = (task.sim.horizon - 1) // task.sim.turn_length  # after the horizon's last token nobody is told
        assert episodes.tokens[i][heard[i]].tolist() == answers[:spoken]
        modes |= set(at.mode[found].tolist())
    assert len(rewards.unique()) > 1
    assert modes == set(at.mode.tolist())


def test_a_chain_of_three_written_out():
    task = chain(**ANSWER | {"vocab": 12, "thinking": 1, "recovery": 1, "horizon": 8})
    first, second, third = (tokens_of(task, 0, q) for q in range(3))  # ranks: right 0 1, after a thought 2 3, think 4
    said = {
        (first[0], second[1], 0): 1.0,
        (first[2], second[0], 0): 0.0,  # right after a thought only
        (first[4], first[4], first[2], second[0], 0): 1.0,
        (first[0], 0): 0.0,  # too early
        (first[6], second[5], 0): 1.0,  # lost, and back
        (first[6], second[4], 0): 0.0,  # off the chain a thought is nothing
        (first[0], second[0], third[1], first[0], second[1], 0): 1.0,  # once round
        (first[0], second[0], third[1], first[0], second[1], third[4], third[4], third[4]): 0.0,  # cut
        (0,): 0.0,
    }
    padded = torch.tensor([[*response, *[0] * (8 - len(response))] for response in said])
    assert task.earned(torch.zeros(len(said), 1, dtype=torch.int64), padded).tolist() == list(said.values())
    graded = Chain(task.sim.model_copy(update={"reward": "graded"}))
    earned = graded.earned(torch.zeros(len(said), 1, dtype=torch.int64), padded).tolist()
    assert earned == pytest.approx([1.0, 0.0, 1.0, 2 / 3, 1.0, 0.0, 1.0, 0.0, 1 / 3])


def test_a_response_that_is_cut_earns_the_same_by_either_rule_where_answers_count():
    kept, zero = (chain(**ANSWER, truncated=rule) for rule in ("scored", "zero"))
    rows, said, mask = responses(kept, 30, 2)
    found = [task.verify(converse(task, rows, said, mask)) for task in (kept, zero)]
    assert torch.equal(*found)
    assert found[0].any()


def test_an_episode_in_the_middle_is_told_whether_the_chain_holds():
    task = chain(**PLAIN, feedback=True, turn_length=2)
    first, second = tokens_of(task, 1, 0), tokens_of(task, 1, 1)
    tokens = torch.tensor([[1, first[1], second[0]], [1, first[1], second[2]], [1, first[5], second[0]]])
    mask = torch.tensor([False, True, True]).expand(3, 3)
    episodes = Episodes(tokens=tokens, mask=mask, lengths=torch.full((3,), 3), prompt=torch.ones(3, dtype=torch.int64))
    answer = task.answer(episodes)
    assert answer.tokens.tolist() == [[1], [2], [2]]
    assert answer.lengths.tolist() == [1, 1, 1]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 2), st.integers(0, 2), st.integers(0, 2),
    st.booleans(), st.sampled_from(["horizon", "answer"]), st.integers(1, 3), st.integers(1, 4),
)  # fmt: skip
def test_every_context_of_any_size_is_in_its_table(problems, q, right, recovery, thinking, told, ending, turn, spare):
    thinking = thinking if ending == "answer" else 0
    need = right * (2 if thinking else 1) + thinking + recovery * (1 + told)
    sim = Sim(
        task="chain",
        prompts=4,
        positions=q,
        right=right,
        recovery=recovery,
        thinking=thinking,
        feedback=told,
        ending=ending,
        turn_length=turn,
        horizon=40,
        vocab=max(3, need + spare + 1),
    )
    task, rows = Chain(sim), torch.arange(problems)
    contexts = task.contexts(rows)
    count = problems * q * (2 + (thinking > 0) + told) * (turn if told else 1)
    assert contexts.follow.shape == (count, sim.vocab)
    assert contexts.features.shape == (count, sim.inputs)
    assert len(contexts.keys.unique()) == count
    assert len(contexts.features.unique(dim=0)) == count
    torch.testing.assert_close(contexts.features.norm(dim=-1), torch.full((count,), 2**0.5).double())
    # every ending, or else every kind of cut, is reached from every problem
    seen = torch.zeros(problems, count + len(contexts.ends)).bool()
    seen[torch.arange(problems), contexts.start] = True
    for _ in range(count):
        for x in range(problems):
            seen[x, contexts.follow[seen[x, :count].nonzero()[:, 0]]] = True
    assert seen[:, count:].all()
    # problems never mix, and where answers count nothing else pays
    assert not (seen[:, :count] & (places(sim, rows).problem != rows[:, None])).any()
    assert (contexts.cut.max() == 0) == (ending == "answer")


@pytest.mark.parametrize("name", SETTINGS)
def test_renaming_problems_renames_contexts(name):
    task = chain(**SETTINGS[name])
    one, other = (task.contexts(torch.tensor(rows)) for rows in ([0, 3, 2], [2, 0, 3]))
    there = {int(key): row for row, key in enumerate(other.keys)}
    row = torch.tensor([there[int(key)] for key in one.keys] + list(range(len(one.keys), len(one.rewards))))
    size = len(one.keys)
    assert torch.equal(other.follow[row[:size]], row[one.follow])
    assert torch.equal(other.features[row[:size]], one.features)
    assert torch.equal(other.rewards[row], one.rewards)
    assert torch.equal(other.start[[1, 2, 0]], row[one.start])
    lessons = [task.lesson(torch.tensor(rows)).target(0.6) for rows in ([0, 3, 2], [2, 0, 3])]
    assert torch.equal(lessons[1][row[:size]], lessons[0])


@pytest.mark.parametrize("shared", [0.0, 0.3, 1.0])
def test_contexts_off_the_chain_share_that_cosine_of_problem_and_position(shared):
    sim = Sim(task="chain", prompts=2, shared=shared, **RICH)
    at = places(sim, torch.arange(2))
    found, place = features(sim, at), 2 * (sim.available + sim.positions)
    for mode, cosine in ((THOUGHT, 1.0), (OFF, shared), (TOLD, shared)):
        inner = (found[at.mode == ON][:, :place] * found[at.mode == mode][:, :place]).sum(-1)
        torch.testing.assert_close(inner, torch.full_like(inner, cosine))
    assert torch.equal(found[at.mode == OFF][:, :place], found[at.mode == TOLD][:, :place])


def test_right_tokens_are_spread_and_never_the_end():
    task = chain(**ANSWER | {"vocab": 9, "right": 4})
    rank = task.rank(torch.arange(2000), torch.zeros(2000, dtype=torch.int64))
    assert (rank[:, 0] == 8).all()
    count = (rank[:, 1:] < 4).sum(0)
    assert ((count - 1000).abs() < 5 * 500**0.5).all()


def test_a_lesson_written_out():
    task = chain(**RICH | {"tail": 1.0})
    rows, at = torch.arange(2), places(task.sim, torch.arange(2))
    target = task.lesson(rows).target(0.6)
    cases = [(ON, 0, [0, 1]), (THOUGHT, 1, [0, 1, 2, 3]), (OFF, 2, [6, 7]), (TOLD, 0, [6, 7, 8, 9])]
    for mode, position, ranks in cases:
        order = tokens_of(task, 1, position)
        good = [order[k] for k in ranks]
        others = [v for v in order if v not in good]
        zipf = [1 / k for k in range(1, len(others) + 1)]
        row = ((at.problem == 1) & (at.position == position) & (at.mode == mode)).nonzero()[0, 0]
        assert target[row, good].tolist() == pytest.approx([0.6 / len(good)] * len(good))
        assert target[row, others].tolist() == pytest.approx([0.4 * z / sum(zipf) for z in zipf])
    last = at.holds & (at.position == 2)
    assert (target[last, 0] == 0.6).all()
    assert not chain(**PLAIN).lesson(rows).target(0.6)[~places(chain(**PLAIN).sim, rows).holds].any()


def test_prompts_are_the_numbers_of_problems():
    task = task_of(Sim(task="chain", prompts=3, pool=9))
    found = task.prompts(torch.tensor([[2, 0], [8, 1]]))
    assert task.size == 9
    assert found.tokens.tolist() == [[[2], [0]], [[8], [1]]]
    assert (found.lengths == 1).all()
    assert not found.mask.any()
    assert task.layout.prompt == 1
    assert not task.answer(found).lengths.any()
