"""Demonstrations against every response written out."""

import itertools

import pytest
import torch
from scipy import stats as scipy_stats

from firstorder.core.errors import ConfigError
from firstorder.sim.config import Sim
from firstorder.sim.model import noise
from firstorder.sim.tasks import WORD_TASKS, task_of
from firstorder.sim.tasks.demonstrations import demonstrator

STYLES = ("terse", "verbose", "roundabout")
SETTINGS = {name: {"task": name, "vocab": 4, "horizon": 5} for name in WORD_TASKS} | {
    "program_of_a_prime": {"task": "program", "vocab": 5, "horizon": 5},
    "program_of_a_composite": {"task": "program", "vocab": 4, "horizon": 5, "prompt_length": 3},
    "text_of_three": {"task": "text", "vocab": 4, "horizon": 6, "prompt_length": 3},
    "guess_in_long_turns": {"task": "guess", "vocab": 4, "horizon": 6, "turn_length": 2},
}


def is_correct(sim, prompt, words, reference):
    """Whether a response may be shown: it earns all there is, tells the whole reference, or ends with its first hit."""
    if sim.task == "text":
        return reference.common(words, [token % (sim.vocab - 1) + 1 for token in prompt]) == len(prompt)
    if sim.task == "guess":
        size = sim.turn_length
        turns = [list(words[i : i + size]) for i in range(0, len(words), size)]
        hits = [turn == reference.hidden(sim, prompt) for turn in turns]
        return bool(hits) and hits.index(True) == len(hits) - 1 if any(hits) else False
    return reference.reward(sim.model_copy(update={"reward": "binary"}), prompt, (*words, 0)) == 1


@pytest.fixture(scope="module", params=SETTINGS)
def world(request, reference):
    """A task, its first prompts, and the correct words of each prompt by length."""
    sim = Sim(**SETTINGS[request.param])
    prompts = task_of(sim).prompts(torch.arange(3)).tokens
    words = []
    for prompt in prompts.tolist():
        every = [list(itertools.product(range(1, sim.vocab), repeat=n)) for n in range(sim.horizon)]
        words.append([[w for w in of_length if is_correct(sim, tuple(prompt), w, reference)] for of_length in every])
    return sim, task_of(sim).automaton(prompts), words


def drawn(sim, automaton, style, count, correct=1.0):
    """`count` demonstrations to each of the three prompts, as tuples without their end token."""
    rows = torch.arange(3).repeat_interleave(count)
    tokens, mask = demonstrator(automaton, sim.horizon, style, correct).draw(rows, noise.mix(torch.arange(3 * count)))
    found = [tuple(row[said].tolist()) for row, said in zip(tokens, mask, strict=True)]
    assert all(word[-1] == 0 for word in found)
    return [[word[:-1] for word in found[x * count : (x + 1) * count]] for x in range(3)]


def test_shares_count_the_correct_words_of_every_length(world, same):
    sim, automaton, words = world
    shares = demonstrator(automaton, sim.horizon, "terse").shares
    for x in range(3):
        counts = [len(of_length) for of_length in words[x]]
        totals = [(sim.vocab - 1) ** n for n in range(sim.horizon)]
        same(shares[:, x, automaton.start[x]] * torch.tensor(totals), [float(c) for c in counts], 1e-12)


@pytest.mark.parametrize("style", STYLES)
def test_every_demonstration_is_a_correct_word_of_its_style(style, world):
    sim, automaton, words = world
    for found, correct in zip(drawn(sim, automaton, style, 400), words, strict=True):
        possible = [n for n, of_length in enumerate(correct) if of_length]
        wanted = {"terse": possible[0], "verbose": possible[-1], "roundabout": possible[:2][-1]}[style]
        expected = [min(correct[wanted])] if style == "verbose" else correct[wanted]
        counts = [found.count(word) for word in expected]
        assert sum(counts) == 400
        if len(expected) > 1:
            assert scipy_stats.chisquare(counts).pvalue > 1e-4


def test_what_is_not_correct_is_as_long_and_says_anything():
    sim = Sim(vocab=4, horizon=5)
    automaton = task_of(sim).automaton(torch.tensor([[1, 1], [2, 3], [3, 3]]))
    found = drawn(sim, automaton, "verbose", 2000, correct=0.6)
    for words, rule in zip(found, drawn(sim, automaton, "verbose", 1), strict=True):
        share = words.count(rule[0]) / 2000
        assert share == pytest.approx(0.6 + 0.4 / 3**4, abs=5 * 0.5 / 2000**0.5)
        assert {len(word) for word in words} == {len(rule[0])}
        assert len(set(words)) == 3**4


def test_a_demonstration_is_the_same_whoever_else_is_shown_one():
    sim = Sim(task="program", horizon=6)
    task = task_of(sim)
    shown = demonstrator(task.automaton(task.prompts(torch.arange(4)).tokens), 6, "roundabout", 0.7)
    rows, keys = torch.tensor([[0, 1, 2], [3, 1, 0]]), noise.mix(torch.arange(6)).view(2, 3)
    tokens, mask = shown.draw(rows, keys)
    alone, said = shown.draw(rows[1, 2], keys[1, 2])
    assert torch.equal(tokens[1, 2], alone)
    assert torch.equal(mask[1, 2], said)


def test_long_responses_are_shown_without_enumeration():
    sim = Sim(vocab=6, horizon=200)
    task = task_of(sim)
    shown = demonstrator(task.automaton(task.prompts(torch.arange(25)).tokens), 200, "verbose")
    tokens, mask = shown.draw(torch.arange(25), torch.arange(25))
    assert (mask.sum(-1) == 200).all()
    assert (tokens.sum(-1) % 6 == task.prompts(torch.arange(25)).tokens.sum(-1) % 6).all()


def test_prompts_that_nothing_correct_answers_are_counted():
    task = task_of(Sim(horizon=1))
    with pytest.raises(ConfigError, match=r"6 of 9 training prompts .* sim\.horizon = 1 tokens; raise sim\.horizon"):
        demonstrator(task.automaton(task.prompts(torch.arange(9)).tokens), 1, "terse")
