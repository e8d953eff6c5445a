"""The simulator's tasks: what a response earns, where an episode's tokens stand, and what answers change."""

import itertools

import pytest
import torch

from firstorder.core.method.surrogate import receipts, token_weights
from firstorder.core.rouge import longest_common
from firstorder.core.tasks import Answer, Episodes
from firstorder.core.training.diagnostics import moments
from firstorder.sim import tasks
from firstorder.sim.config import Sim
from firstorder.sim.exact import objectives
from firstorder.sim.exact.bounds import bounds
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.scene import MODES, build, engines, grow
from firstorder.sim.exact.size import answers
from firstorder.sim.exact.tree import episodes
from firstorder.sim.model.policy import initial_weights
from firstorder.sim.tasks import WORD_TASKS, Guess, Program, Text, task_of
from firstorder.sim.tasks.task import Layout, converse

SETTINGS = {name: {"task": name, "vocab": 4, "horizon": 4} for name in WORD_TASKS} | {
    "sum_of_five": {"task": "sum", "vocab": 5, "horizon": 3},
    "sum_graded": {"task": "sum", "vocab": 4, "horizon": 3, "reward": "graded", "truncated": "zero"},
    "program_of_a_prime": {"task": "program", "vocab": 5, "horizon": 3},
    "program_binary": {"task": "program", "vocab": 4, "horizon": 4, "reward": "binary"},
    "program_of_one_token": {"task": "program", "vocab": 3, "horizon": 3, "prompt_length": 1, "prompts": 2},
    "text_of_three": {"task": "text", "vocab": 4, "horizon": 4, "prompt_length": 3},
    "text_binary": {"task": "text", "vocab": 3, "horizon": 4, "reward": "binary", "truncated": "zero"},
    "guess_in_long_turns": {"task": "guess", "vocab": 4, "horizon": 5, "turn_length": 2, "prompts": 1},
    "guess_binary": {"task": "guess", "vocab": 5, "horizon": 3, "reward": "binary"},
}


@pytest.fixture(scope="module", params=SETTINGS)
def sim(request):
    return Sim(**({"prompts": 3} | SETTINGS[request.param]))


def test_every_response_earns_what_the_slow_task_pays(sim, pairs_of, reference, same):
    tree = grow(sim)
    rewards = tree.every.rewards
    same(rewards, [reference.reward(sim, *pair) for pair in pairs_of(tree)])
    assert len(rewards.unique()) > 1
    assert ((rewards >= 0) & (rewards <= 1)).all()


def test_an_episode_is_the_context_of_its_last_token_and_that_token(sim, pairs_of, reference):
    tree = grow(sim)
    found = episodes(tree, tree.every)
    for row, (prompt, response) in enumerate(pairs_of(tree)):
        expected = (*reference.context(sim, prompt, response[:-1]), response[-1])
        assert tuple(found.tokens[row, : found.lengths[row]].tolist()) == expected
        assert not found.tokens[row, found.lengths[row] :].any()
        assert found.tokens[row, found.mask[row]].tolist() == list(response)


def test_answers_are_counted_without_planting(sim):
    tree = grow(sim)
    assert answers(sim) == sum(lead.numel() - lead.shape[1] for lead in tree.leads[1:])


@pytest.mark.parametrize(("turn", "answer"), [(1, 1), (2, 1), (2, 3), (3, 2), (7, 1), (4, 0)])
def test_places_are_those_of_an_episode_written_out(turn, answer):
    layout = Layout(prompt=2, horizon=6, turn=turn, answer=answer)
    written = ["prompt"] * 2
    for depth in range(6):
        if depth and depth % turn == 0:
            written += ["answer"] * answer
        assert layout.before(depth) == len(written)
        assert layout.answered(depth) == (written[-1] == "answer")
        written.append("policy")
    assert layout.places.tolist() == [i for i, what in enumerate(written) if what == "policy"]
    assert layout.length == len(written)
    assert not layout.answered(6)


@pytest.mark.parametrize("seed", range(4))
def test_the_longest_common_subsequence_is_the_longest_of_all_subsequences(seed, reference):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randint(0, 4, (40, 6), generator=g), torch.randint(1, 4, (40, 5), generator=g)
    expected = [reference.common([x for x in r if x], s) for r, s in zip(a.tolist(), b.tolist(), strict=True)]
    assert longest_common(a, b).tolist() == expected
    assert longest_common(a.view(4, 10, 6), b.view(4, 10, 5)).flatten().tolist() == expected


def test_rouge_of_known_texts():
    task = Text(Sim(task="text", vocab=6, prompt_length=4, horizon=6))
    prompt = torch.tensor([5, 1, 2, 3])  # wants 1 2 3 4
    said = torch.tensor([[1, 2, 3, 4, 0, 0], [1, 3, 0, 0, 0, 0], [4, 3, 2, 1, 0, 0], [1, 5, 2, 5, 3, 4], [0] * 6])
    found = task.earned(prompt.expand(5, -1), said)
    assert found.tolist() == pytest.approx([1.0, 2 * 2 / 6, 2 * 1 / 8, 2 * 4 / 10, 0.0])


def test_programs_of_known_functions():
    task = Program(Sim(task="program", vocab=5, horizon=3))
    prompt = torch.tensor([2, 2])  # wants 2 x + 2
    said = torch.tensor([[1, 2, 0], [2, 1, 1], [2, 1, 0], [1, 0, 0], [0, 0, 0]])
    # (x + 1) 2, 2 x + 1 + 1, 2 x + 1, and x + 1 and x, which agree with it at x = 4 and x = 3
    assert task.earned(prompt.expand(5, -1), said).tolist() == pytest.approx([1.0, 1.0, 0.0, 0.2, 0.2])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_environment_orders_numbers_as_their_digits_do(size):
    task = Guess(Sim(task="guess", vocab=5, horizon=6, turn_length=size))
    prompt = torch.tensor([3, 1])
    hidden = tuple(task.hidden(prompt).tolist())
    turns = list(itertools.product(range(1, 5), repeat=size))
    said = task.reply(prompt.expand(len(turns), -1), torch.tensor(turns))[:, 0].tolist()
    assert said == [1 if hidden < turn else 2 if hidden == turn else 3 for turn in turns]


def test_an_earlier_hit_earns_more():
    task = Guess(Sim(task="guess", vocab=4, horizon=5, turn_length=2))
    prompt = task.prompts(torch.tensor([0])).tokens
    hit = task.hidden(prompt)[0].tolist()
    miss = [hit[0], hit[1] % 3 + 1]
    said = torch.tensor([[*hit, 0, 0, 0], [*miss, *hit, 1], [*miss, *miss, 1], [hit[0], 0, 0, 0, 0], [*hit, *hit, 2]])
    assert task.earned(prompt.expand(5, -1), said).tolist() == [1.0, 0.5, 0.0, 0.0, 1.0]


def test_hidden_numbers_are_spread_over_the_prompts():
    task = Guess(Sim(task="guess", vocab=9, prompt_length=4, horizon=2))
    count = torch.bincount(task.hidden(task.prompts(torch.arange(4096)).tokens)[:, 0], minlength=9)
    assert count[0] == 0
    assert ((count[1:] - 512).abs() < 5 * 512**0.5).all()


def test_a_single_turn_task_is_silent():
    task = task_of(Sim())
    answer = task.answer(task.prompts(torch.arange(3)))
    assert isinstance(answer, Answer)
    assert not answer.lengths.any()


class Chatty(Guess):
    """The same task, whose environment says everything three times."""

    answer_length = 3

    def reply(self, prompts, turn):
        return super().reply(prompts, turn).expand(*turn.shape[:-1], 3)


@pytest.fixture
def of_count(small, monkeypatch):
    """The scene of a policy that says anything equally often, and its tree, for an environment of that many tokens."""

    def make(count, modes=MODES):
        monkeypatch.setitem(tasks.TASKS, "guess", {1: Guess, 3: Chatty}[count])
        sim = small(task="guess", vocab=4, staleness=0)
        weights = initial_weights(sim, torch.tensor([0]))
        weights["head"] = 0 * weights["head"]
        return build(sim, grow(sim), engines(sim, torch.arange(1)), weights, None, modes)

    return make


@pytest.mark.parametrize("name", ["minirl-r3", "grpo", "gspo", "dapo", "trm"])
def test_how_many_tokens_an_environment_says_enters_no_denominator(name, of_count, acting, same):
    recipe, found = acting(name, "schedule.group_size=3"), []
    for count in (1, 3):
        scene = of_count(count)
        assert [len(lead) for lead in scene.world.leads] == [2, 1 + count, 1 + count]
        measurement = Measurement(scene=scene, recipe=recipe)
        signed = measurement.batch.stats.with_advantage(measurement.advantages.plus[:, scene.responses.prompt, 0] + 1)
        numbers = {
            "weights": measurement.batch.expected,
            "reach": scene.world.visits(scene.mu_old.logp.exp()),
        }
        numbers |= vars(objectives.values(scene, recipe.router_replay.mode)) | bounds(scene, recipe.router_replay.mode)
        for pairs in (moments(measurement.batch.stats), receipts(signed, token_weights(signed, recipe), recipe)):
            numbers |= {key: torch.stack(pair) for key, pair in pairs.items()}
        found.append(numbers)
    assert float(found[0]["weights"].abs().max()) > 0
    for key, value in found[0].items():
        same(found[1][key], value)


def test_what_an_environment_says_is_heard(of_count):
    """The routes of what follows an answer depend on it, so the count of its tokens is not nothing."""
    one, three = (of_count(count, ["R3"]).mu_old.routes for count in (1, 3))
    first = len(one.leads[0][0, 0])
    assert torch.equal(one.contexts[:, :first], three.contexts[:, :first])
    assert not torch.equal(one.contexts, three.contexts)
    assert three.leads[1].shape[1] == 3


def test_an_answer_is_given_to_nobody_who_has_ended():
    task = task_of(Sim(task="guess", horizon=4, turn_length=2))
    said = torch.tensor([[1, 0, 0, 0], [1, 2, 0, 0], [1, 2, 3, 0], [0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    found = converse(task, torch.zeros(4, dtype=torch.int64), said, mask)
    assert isinstance(found, Episodes)
    assert (found.tokens[:, 4] > 0).tolist() == [False, True, True, False]
    assert found.lengths.tolist() == [4, 6, 7, 3]


@pytest.mark.parametrize("name", WORD_TASKS)
def test_prompts_are_all_different_and_the_same_for_every_seed(name):
    sim = Sim(task=name, vocab=9, prompt_length=4, pool=4096)
    task = task_of(sim)
    found = task.prompts(torch.arange(sim.training_prompts))
    assert task.size == 4096
    assert len(found.tokens.unique(dim=0)) == 4096
    assert not found.mask.any()
    assert (found.lengths == 4).all()
    again = task_of(sim.model_copy(update={"seed": 3, "horizon": 2})).prompts(torch.arange(7))
    assert torch.equal(found.tokens[:7], again.tokens)
