"""The sums with the tokenizer of their folder; what needs none is in tests/tasks."""

import pytest
import torch

from firstorder.backends.conversation import episodes
from firstorder.backends.rollouts import Response
from firstorder.backends.tasks import sums
from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.tasks.registry import open_tasks
from firstorder.core.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, shape, write_model):
    return open_tasks(TaskSettings(kind="sums"), write_model(tmp_path_factory.mktemp("model"), shape), 40)


def test_the_tokenizer_of_the_folder_says_what_the_task_says(tasks):
    tokenizer, text = tasks.train.chat.tokenizer, "17+25=7+5=12,1+2+1=4>42"
    assert tokenizer(text)["input_ids"] == sums.encode(text)
    assert tokenizer.decode(sums.encode(text)) == text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (sums.END, sums.PAD)
    assert tasks.ends == (sums.END,)


def test_the_prompts_of_both_sides_are_those_of_the_stream(tasks):
    for task, held_out in ((tasks.train, False), (tasks.held_out, True)):
        found = task.prompts(torch.tensor([5, 0]))
        assert [found.tokens[i, : found.lengths[i]].tolist() for i in range(2)] == [
            sums.encode(sums.prompt(row, held_out)) for row in (5, 0)
        ]


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ([*sums.encode("24>42"), sums.END], 1.0),
        (sums.encode("24>42"), 0.0),  # it was cut
        ([*sums.encode("4"), 31, *sums.encode("2"), sums.END], 1.0),  # an id without a token says nothing
        ([*sums.encode("43"), sums.END], 0.0),
        ([sums.END], 0.0),
    ],
)
def test_tokens_earn_what_their_text_earns(tasks, monkeypatch, response, reward):
    monkeypatch.setattr(sums, "prompt", lambda number, held_out=False: "17+25=")
    said = Response(tokens=response, logp=[], routes=torch.empty(0), ended=True)
    assert tasks.train.verify(episodes([0], [sums.encode("17+25=")], [said])).tolist() == [reward]


def test_what_has_no_token_is_named():
    with pytest.raises(DataError, match="has no 'x'"):
        sums.encode("1x2=")
    with pytest.raises(ConfigError, match="no style 'stps'; styles: direct, reversed, steps"):
        sums.check_style("stps")
