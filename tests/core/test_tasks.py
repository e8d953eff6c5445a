"""The Task protocol, as a task of texts fills it, and what an environment's tokens may not do to a batch."""

from dataclasses import replace

import pytest
import torch

from firstorder.core.errors import DataError
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.surrogate import receipts, surrogate_loss, token_weights
from firstorder.core.settings import toml
from firstorder.core.tasks import Answer, Episodes, silence
from firstorder.core.training.diagnostics import diagnose, moments

RECIPES = [toml.build(Recipe, toml.read(name)) for name in toml.shipped()]
EVERY = pytest.mark.parametrize("recipe", [r for r in RECIPES if not r.about.unsupported], ids=lambda r: r.about.name)
PER_TOKEN = ("logp_theta", "logp_old", "logp_mu", "kl_mu", "router_shift")


class Spelling:
    """Spell a word backwards; who starts wrongly is told the first letter. Ids are letters, texts are of any length."""

    words = ("no", "tea", "pot")
    size = len(words)

    def prompts(self, rows):
        tokens, lengths = padded([self.words[row] for row in rows.tolist()])
        return Episodes(tokens=tokens, mask=torch.zeros_like(tokens, dtype=torch.bool), lengths=lengths, prompt=rows)

    def answer(self, episodes):
        tokens, lengths = padded([self._hint(*row) for row in self._rows(episodes)])
        return Answer(tokens=tokens, lengths=lengths)

    def verify(self, episodes):
        said = [("".join(turns[-1:]), word) for word, turns in self._rows(episodes)]
        return torch.tensor([float(text == word[::-1]) for text, word in said])

    def _hint(self, word, turns):
        return "" if turns[-1][:1] == word[-1] else f"it starts with {word[-1]}"

    def _rows(self, episodes):
        """Word and the policy's turns, texts both."""
        for tokens, mask, length, row in zip(*vars(episodes).values(), strict=True):
            text, own = "".join(map(chr, tokens[:length])), "".join("x" if m else " " for m in mask[:length])
            ends = [i for i in range(1, len(own) + 1) if own[i - 1 : i + 1] in ("x ", "x")]
            starts = [i for i in range(len(own)) if own[i] == "x" and own[i - 1] == " "]
            yield self.words[row], [text[a:b] for a, b in zip(starts, ends, strict=True)]


def padded(texts):
    lengths = torch.tensor([len(text) for text in texts])
    rows = [
        torch.tensor([*map(ord, text)] + [0] * (int(lengths.max()) - len(text)), dtype=torch.int64) for text in texts
    ]
    return torch.stack(rows), lengths


def join(episodes, said, sampled):
    """The episodes with texts appended, as a backend of texts does it, row by row."""
    texts, masks = [], []
    for tokens, mask, length, text in zip(episodes.tokens, episodes.mask, episodes.lengths, said, strict=True):
        texts.append("".join(map(chr, tokens[:length])) + text)
        masks.append(mask[:length].tolist() + [sampled] * len(text))
    tokens, lengths = padded(texts)
    width = tokens.shape[1]
    mask = torch.tensor([row + [False] * (width - len(row)) for row in masks])
    return Episodes(tokens=tokens, mask=mask, lengths=lengths, prompt=episodes.prompt)


def test_a_task_of_texts_fits_the_protocol():
    task, rows = Spelling(), torch.tensor([0, 1, 2, 1])
    episodes = join(task.prompts(rows), ["on", "xx", "tip", "aet"], sampled=True)
    assert task.verify(episodes).tolist() == [1.0, 0.0, 0.0, 1.0]
    answer = task.answer(episodes)
    assert answer.lengths.tolist() == [0, 16, 0, 0]
    hints = ["".join(map(chr, row[:n])) for row, n in zip(answer.tokens, answer.lengths, strict=True)]
    assert hints[1] == "it starts with a"
    again = join(join(episodes, hints, sampled=False), ["", "aet", "", ""], sampled=True)
    assert task.verify(again).tolist() == [1.0, 1.0, 0.0, 1.0]
    assert again.mask.sum(-1).tolist() == [2, 5, 3, 3]


@pytest.mark.parametrize("name", ["mask", "lengths", "prompt"])
def test_episodes_of_another_shape_are_refused_by_name(name):
    fields = {
        "tokens": torch.zeros(2, 3, dtype=torch.int64),
        "mask": torch.zeros(2, 3, dtype=torch.bool),
        "lengths": torch.ones(2, dtype=torch.int64),
        "prompt": torch.zeros(2, dtype=torch.int64),
    }
    fields[name] = fields[name][:1]
    with pytest.raises(DataError, match=f"`{name}` must be "):
        Episodes(**fields)


def test_silence_says_nothing_to_anybody():
    answer = silence(Spelling().prompts(torch.tensor([0, 1])))
    assert answer.tokens.shape == (2, 0)
    assert answer.lengths.tolist() == [0, 0]


def interrupted(stats, count):
    """The same responses with `count` tokens of an environment after every second place, and where the old ones are."""
    places = [p + count * (p // 2) for p in range(stats.mask.shape[-1])]
    length = places[-1] + 1 + count
    wide = {n: torch.full((len(stats.mask), length), -0.7, dtype=torch.float64) for n in PER_TOKEN}
    for name, values in wide.items():
        values[:, places] = getattr(stats, name)
    mask = torch.zeros(len(stats.mask), length, dtype=torch.bool)
    mask[:, places] = stats.mask
    return replace(stats, **wide, mask=mask), places


@EVERY
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("exhaustive", [True, False])
def test_tokens_of_an_environment_enter_no_ratio_and_no_denominator(recipe, count, exhaustive, make_stats, same):
    plain = make_stats()
    if exhaustive:
        plain = replace(plain, measure=torch.tensor([0.1, 0.2, 0.05, 0.3, 0.15, 0.2], dtype=torch.float64))
    stats, places = interrupted(plain, count)
    # an environment that speaks ends a turn; here one turn goes on around its tokens
    plain, stats = (replace(each, turn=torch.ones(each.mask.shape, dtype=torch.int64)) for each in (plain, stats))
    parts, expected = token_weights(stats, recipe), token_weights(plain, recipe)
    same(parts.weight[:, places], expected.weight)
    assert (parts.weight[~stats.mask] == 0).all()
    same(surrogate_loss(stats, parts.weight), surrogate_loss(plain, expected.weight))
    for found, wanted in (
        (receipts(stats, parts, recipe), receipts(plain, expected, recipe)),
        (moments(stats), moments(plain)),
    ):
        for name, pair in wanted.items():
            same(torch.stack(found[name]), torch.stack(pair))
    for name, value in diagnose(plain).items():
        same(diagnose(stats)[name], value)
