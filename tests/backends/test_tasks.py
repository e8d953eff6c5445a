"""Tasks on the real engines: tokenizers and templates, verifiers, and episodes of several turns."""

import dataclasses
import itertools
import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from firstorder.backends import conversation
from firstorder.backends.folder import write_config
from firstorder.backends.rollouts import Response
from firstorder.backends.session import open_pair
from firstorder.backends.tasks import guess, gym
from firstorder.backends.tasks.chat import PRIVATE, read_chat, write_characters
from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.tasks.problems import Listed, Problem
from firstorder.backends.tasks.registry import open_tasks
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.vllm.config import Vllm
from firstorder.cli.main import run
from firstorder.core.errors import ConfigError, DataError
from firstorder.core.method.recipe import Recipe
from firstorder.core.settings import toml

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
CHARACTERS = "".join(map(chr, range(32, 127))) + "\n"
SPECIAL = ["<pad>", "<end>", "<start>"]
TEMPLATE = (
    "{% for m in messages %}<start>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant\n{% endif %}"
)
LONG = "Say a number, and nothing else. " * 6  # more than a block of the prefix cache, which is 128 tokens
GUESS = TaskSettings(kind="guess", system=LONG, turns=4, largest=9, held_out=0.3)
FIRST = ["schedule.steps=1", "schedule.prompts=4", "schedule.group_size=4", "optimizer.lr=0.01"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shape, write_model):
    """A model that knows letters, and whose turns are short: every digit ends one."""
    made = tmp_path_factory.mktemp("model")
    write_model(made, dataclasses.replace(shape, vocab_size=128, max_position_embeddings=512))
    write_characters(made, SPECIAL, CHARACTERS)
    digits = [len(SPECIAL) + CHARACTERS.index(digit) for digit in "0123456789"]
    (made / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, *digits]}))
    return made


@pytest.fixture
def templated(folder, tmp_path):
    """The same with a chat template."""
    copy = tmp_path / "templated"
    shutil.copytree(folder, copy)
    file = copy / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": TEMPLATE}))
    return copy


def test_a_prompt_is_plain_text_where_there_is_no_template(folder):
    chat = read_chat(folder)
    assert chat.text(chat.prompt("Be brief.", "1+1?")) == "Be brief.\n\n1+1?"
    assert chat.text(chat.answer("lower")) == "\nlower\n"
    assert chat.ends[0] == 1
    assert (chat.ended([5, 1]), chat.ended([1, 5]), chat.ended([])) == (True, False, False)
    assert chat.text([5, 1, 127, 0]) == CHARACTERS[2]  # neither special tokens nor ids without a token


def test_turns_are_those_of_the_template(templated):
    chat = read_chat(templated)
    history = [*chat.prompt("Be brief.", "guess"), *chat._encode("5", special=False), 1, *chat.answer("lower")]
    turns = [("system", "Be brief."), ("user", "guess"), ("assistant", "5"), ("user", "lower")]
    whole = chat.tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in turns], tokenize=False, add_generation_prompt=True
    )
    assert history == chat._encode(whole, special=False)


@pytest.mark.parametrize("text", ["a<end>b<start>", "", "  ", "SAID", "<pad>", "plain"])
def test_text_that_spells_a_special_token_stays_text(folder, templated, text):
    spelled = [len(SPECIAL) + CHARACTERS.index(character) for character in text]
    plain, chat = read_chat(folder), read_chat(templated)
    newline = len(SPECIAL) + CHARACTERS.index("\n")
    assert plain.answer(text) == [newline, *spelled, newline]
    assert plain.prompt("", f"?{text}")[1:] == spelled
    for ids in (chat.prompt("", f"?{text}"), chat.answer(f"?{text}")):
        assert chat.tokenizer.decode(ids).count(f"?{text}") == 1
        assert sum(i == 1 for i in ids) == 1  # the template's own
    assert chat.answer(text)


BYTES = ["<pad>", "<|im_end|>", "<|im_start|>", "<think>", "</think>"]
IM = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ORDINARY = ["Größe: 3 µm, naïve", "名前は何ですか", "🙂 Σ x² ≤ ∞", "\ue0fe\ue0ff\ue000", "  two  spaces\n"]


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory, shape, write_model):
    """Two chats of a byte-level BPE that knows all texts: without a template, and with one."""
    made = tmp_path_factory.mktemp("bytes")
    write_model(made, dataclasses.replace(shape, vocab_size=320, max_position_embeddings=512))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=BYTES,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([IM, "the user thinks, the assistant thinks", *ORDINARY] * 9, trainer)
    tokenizer.save(str(made / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": BYTES[0], "eos_token": BYTES[1]}
    (made / "tokenizer_config.json").write_text(json.dumps(config))
    plain = read_chat(made)
    (made / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": IM}))
    return plain, read_chat(made)


def applied(chat, *turns):
    """Token ids of a conversation as transformers applies the template."""
    messages = [{"role": role, "content": text} for role, text in turns]
    return chat.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_of_any_language_is_encoded_as_transformers_does(bytewise, text):
    plain, chat = bytewise
    assert plain.text(plain.answer(text)) == f"\n{text}\n"
    assert plain.text(plain.prompt(text, text)) == f"{text}\n\n{text}"
    assert chat.prompt(text, text) == applied(chat, ("system", text), ("user", text))
    said = chat._encode("5", special=False)
    history = [*chat.prompt("", "?"), *said, BYTES.index("<|im_end|>"), *chat.answer(text)]
    assert history == applied(chat, ("user", "?"), ("assistant", "5"), ("user", text))


@pytest.mark.parametrize("token", BYTES)
@pytest.mark.parametrize("around", ["{}", "a{}b", "名{} {}\n", "\ue0fe{}\ue0ff{}\ue000"])
def test_no_text_becomes_a_special_token_of_a_byte_level_tokenizer(bytewise, token, around):
    plain, chat = bytewise
    text = around.replace("{}", token)
    assert not set(range(len(BYTES))).intersection([*plain.answer(text), *plain.prompt(text, text)])
    bare = chat.prompt("x", "x"), chat.answer("x")
    for ids, without in zip((chat.prompt(text, text), chat.answer(text)), bare, strict=True):
        kept = [[i for i in each if i < len(BYTES)] for each in (ids, without)]
        assert kept[0] == kept[1]  # the template's own
        assert chat.tokenizer.decode(ids) == chat.tokenizer.decode(without).replace("x", text)


@pytest.mark.parametrize(
    "text", ["\ue0fe", "\ue0ff", "\ue000\ue001", "\ue0ff<|im_end|>", "<|im_end|>\ue000\ue0ff\ue0fe"]
)
def test_private_use_characters_stand_for_themselves(bytewise, text):
    _, chat = bytewise
    assert chat.tokenizer.decode(chat.answer(text)) == f"\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    assert chat.tokenizer.decode(chat.prompt(text, text)).count(text) == 2


def test_a_text_without_a_free_private_use_character_is_refused_by_name(bytewise):
    _, chat = bytewise
    every = "".join(map(chr, PRIVATE))
    with pytest.raises(DataError, match="uses all 6400 private-use characters U\\+E000 to U\\+F8FF"):
        chat.answer(every)


def test_a_template_that_leaves_out_a_text_that_spells_a_special_token_is_named(bytewise):
    _, chat = bytewise
    tokenizer = deepcopy(chat.tokenizer)
    tokenizer.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(DataError, match="contains 1 of 2 texts that spell a special token, and must contain each once"):
        dataclasses.replace(chat, tokenizer=tokenizer).prompt("<think>", "<think>")


def test_the_end_of_thoughts_is_read_where_it_is_a_special_token(folder, tmp_path):
    copy = tmp_path / "thinks"
    shutil.copytree(folder, copy)
    write_characters(copy, [*SPECIAL, "<think>", "</think>"], CHARACTERS)
    assert read_chat(copy).text([3, 10, 4, 11, 1]).count("</think>") == 1


def test_a_template_that_ends_no_turn_is_named(templated):
    (templated / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    with pytest.raises(ConfigError, match=r"does not end a turn with one of its end tokens \[2\]; name that token"):
        open_tasks(GUESS, templated, 400)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: [(f / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")], "has no tokenizer; copy"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "does not load: .*; copy the model's tokenizer files"),
        (lambda f: write_characters(f, SPECIAL, CHARACTERS + "äöüß" * 20), "has 103 tokens, the model 32; they do not"),
        (lambda f: (f / "generation_config.json").write_text('{"eos_token_id": 999}'), "the end token of .* is 999"),
        (lambda f: (f / "generation_config.json").write_text("{"), "cannot read .*generation_config.json"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_named(folder, shape, tmp_path, change, message):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    if "tokens, the model" in message:
        write_config(copy, shape, 1, 0)
    change(copy)
    with pytest.raises(ConfigError, match=message):
        read_chat(copy)


def test_what_cannot_be_said_or_is_too_long_is_named_before_a_run(folder):
    with pytest.raises(ConfigError, match="has no token for 'ä', which the task uses; give a model that knows it"):
        open_tasks(GUESS.model_copy(update={"system": "ä"}), folder, 400)
    with pytest.raises(ConfigError, match=r"the longest of 16 prompts has 2\d\d tokens, and vllm.max_prompt is 100"):
        open_tasks(GUESS, folder, 100)


def test_reasoning_gym_scores_its_own_problems():
    given = TaskSettings(dataset="prime_factorization", options={"max_value": 50})
    train, held_out = gym.problems(given)
    problems = [train[row] for row in range(8)]
    assert problems == [train[row] for row in range(8)]
    assert not {p.question for p in problems} & {held_out[row].question for row in range(8)}
    judge = gym.judge(given)
    right = [f"<think>hm</think> <answer>{p.reference['answer']}</answer>" for p in problems]
    assert judge(problems, right) == [1.0] * 8
    assert judge(problems[:3], ["<answer>zzz</answer>", "", "2 x"]) == [0.0, 0.01, 0.0]  # its scorer raises at letters
    with pytest.raises(ConfigError, match=r"has no 'prime_factorisation'; did you mean 'prime_factorization'\?"):
        gym.problems(TaskSettings(dataset="prime_factorisation"))
    with pytest.raises(ConfigError, match=r"task.options: .* rejects them: .*max_valu"):
        gym.problems(TaskSettings(dataset="prime_factorization", options={"max_valu": 3}))


@pytest.mark.parametrize(
    ("given", "question", "said", "reward"),
    [
        ({"kind": "code", "answer_column": "tests"}, "gcd", "```python\nfrom math import gcd\n```", 1.0),
        ({"kind": "code", "answer_column": "tests"}, "gcd", "def gcd(a, b): return b - a", 2 / 3),
        ({"kind": "text", "answer_column": "prompt"}, "median", "a function of numbers", 8 / 18),
    ],
)
def test_tasks_of_files_see_tokens_and_pay_for_texts(folder, given, question, said, reward):
    files = (str(EXAMPLES / "code.jsonl"),)
    settings = TaskSettings(**given, files=files, held_out=0.3)
    for truncated, cut in (("zero", 0.0), ("scored", reward)):
        tasks = open_tasks(settings.model_copy(update={"truncated": truncated}), folder, 300)
        chat = tasks.train.chat
        sides = [(task, row) for task in (tasks.train, tasks.held_out) for row in range(task.size)]
        task, row = next((task, row) for task, row in sides if question in task.problems[row].question)
        prompt = task.prompts(torch.tensor([row])).tokens[0].tolist()
        whole, half = ([*chat._encode(said, special=False), *end] for end in ([1], []))
        responses = [Response(tokens=t, logp=[], routes=torch.empty(0), ended=True) for t in (whole, half)]
        seen = conversation.episodes([row, row], [prompt, prompt], responses)
        assert task.verify(seen).tolist() == pytest.approx([reward, cut])
        assert task.answer(seen).lengths.tolist() == [0, 0]


@pytest.fixture(scope="module")
def pairs(folder, tmp_path_factory):
    """With the prefix cache and without."""
    recipe = toml.build(Recipe, toml.override(toml.read("minirl-r3"), FIRST))
    titan = Torchtitan(model=str(folder), dtype="float32", pack_length=512)

    def opened(caching):
        vllm = Vllm(dtype="float32", max_prompt=400, max_tokens=24, kv_cache_mib=16, prefix_caching=caching)
        return open_pair(recipe, titan, vllm, open_tasks(GUESS, folder, 400), tmp_path_factory.mktemp("checkpoints"))

    return {caching: opened(caching) for caching in (True, False)}


@pytest.fixture(scope="module")
def batches(pairs):
    return {caching: pair.rollout(0) for caching, pair in pairs.items()}


def runs(mask):
    """Where the policy's turns begin and end."""
    edges = torch.diff(mask.int(), prepend=torch.zeros(1), append=torch.zeros(1))
    return list(zip(edges.eq(1).nonzero().flatten().tolist(), edges.eq(-1).nonzero().flatten().tolist(), strict=True))


@pytest.mark.parametrize("caching", [True, False])
def test_every_turn_is_scored_and_routed_as_the_trainer_does(pairs, batches, caching):
    pair, batch = pairs[caching], batches[caching]
    found = pair.trainer.score(batch)
    assert max(len(runs(mask)) for mask in batch.mask) >= 3
    assert float((found.logp - batch.logp_mu)[batch.mask].abs().max()) < 1e-4
    assert torch.equal(found.routes.sort(-1).values, batch.routes.sort(-1).values)  # environment and end tokens too
    assert float(batch.logp_mu[~batch.mask].abs().max()) == 0.0


def test_the_prefix_cache_changes_nothing(batches):
    for name in ("tokens", "mask", "lengths", "logp_mu", "rewards", "routes"):
        assert torch.equal(getattr(batches[True], name), getattr(batches[False], name)), name


def test_the_environment_speaks_between_turns_and_is_masked(pairs, batches):
    batch, train = batches[True], pairs[True].tasks.train
    for tokens, mask, length, reward, group in zip(
        batch.tokens, batch.mask, batch.lengths, batch.rewards, batch.groups, strict=True
    ):
        turns = runs(mask)
        assert turns[-1][1] == int(length)
        guesses = [train.chat.text(tokens[first:last].tolist()) for first, last in turns]
        replies = [train.chat.text(tokens[a[1] : b[0]].tolist()) for a, b in itertools.pairwise(turns)]
        hidden = train.problems[int(group)].reference
        assert replies == [f"\n{train.reply(hidden, guesses[: k + 1])}\n" for k in range(len(turns) - 1)]
        hit = next((k for k, guess in enumerate(guesses) if guess[-1:] == str(hidden)), None)
        assert float(reward) == (0.0 if hit is None else 1 - hit / 4)


def test_a_request_is_the_tokens_so_far_and_its_routes_agree(pairs, monkeypatch):
    pair, asked = pairs[True], []
    generate = pair.engine.generate

    def listened(prompts, seeds):
        asked.append(([list(prompt) for prompt in prompts], generate(prompts, seeds)))
        return asked[-1][1]

    monkeypatch.setattr(pair.engine, "generate", listened)
    found = conversation.converse(pair.engine, pair.tasks.train, [0, 1, 2], [7, 8, 9], 400)
    assert len(asked) >= 3
    assert found.flips[0] == 0
    assert found.flips[1] > 0
    for (prompts, responses), (later, _) in itertools.pairwise(asked):
        before = [p + r.tokens for p, r in zip(prompts, responses, strict=True)]
        assert all(any(request[: len(b)] == b for b in before) for request in later)


def test_rows_of_other_tokens_are_refused(pairs, monkeypatch):
    pair = pairs[True]
    generate, calls = pair.engine.generate, []

    def shifted(prompts, seeds):
        calls.append(None)
        found = generate(prompts, seeds)
        return found if len(calls) == 1 else [dataclasses.replace(r, routes=r.routes.roll(1, 0)) for r in found]

    monkeypatch.setattr(pair.engine, "generate", shifted)
    with pytest.raises(DataError, match=r"of earlier turns differ in the next request"):
        conversation.converse(pair.engine, pair.tasks.train, [0, 1, 2], [7, 8, 9], 400)


@pytest.mark.parametrize("reward", [1.5, -0.1, float("nan")])
def test_a_reward_that_is_none_stops_the_run(pairs, monkeypatch, reward):
    pair = pairs[True]
    monkeypatch.setattr(guess, "earned", lambda hidden, turns, limit: reward)
    with pytest.raises(DataError, match=r"`rewards` must (lie in \[0, 1\]|be finite), got"):
        pair.rollout(0)


def test_no_more_is_evaluated_than_is_held_out(pairs, monkeypatch):
    pair = pairs[True]
    few = dataclasses.replace(pair.tasks.held_out, problems=Listed([Problem("?", 1), Problem("??", 2)]))
    monkeypatch.setattr(pair, "tasks", dataclasses.replace(pair.tasks, held_out=few))
    assert len(pair.held_out("evaluate", 64).rewards) == 2
    assert 0.0 <= float(pair.evaluate(pair.settings.recipe.schedule.steps)["eval/reward"]) <= 1.0
    pair.check()


def test_an_episode_that_no_longer_fits_is_over(pairs):
    pair = pairs[True]
    (prompt,) = pair.tasks.train.prompts(torch.tensor([0])).lengths.tolist()
    found = conversation.converse(pair.engine, pair.tasks.train, [0] * 4, range(4), prompt + 2)
    assert all(all(response.sampled) for response in found.responses)
    with pytest.raises(DataError, match=r"and vllm.max_prompt is 9; raise it"):
        conversation.converse(pair.engine, pair.tasks.train, [0], [0], 9)


def test_a_run_of_several_turns_is_trained_and_logged(folder, tmp_path):
    settings = [f"torchtitan.model={folder}", "torchtitan.dtype=float32", "torchtitan.pack_length=128", *FIRST]
    settings += ["vllm.dtype=float32", "vllm.kv_cache_mib=16", "task.kind=guess", "task.largest=9", "task.turns=3"]
    settings += ["task.held_out=0.3"]
    words = [word for one in settings for word in ("--set", one)]
    out = tmp_path / "run"
    assert run(["train", "minirl-r3-n2", "--backend", "torchtitan", *words, "--out", str(out)]) == 0
    (line,) = (json.loads(each) for each in (out / "metrics.jsonl").read_text().splitlines())
    assert line["route/turn_flip_rate"] == 0.0
    assert line["route/flip_rate"] == 0.0
    assert abs(line["kl"]) < 1e-5
    assert 0.0 <= line["eval/reward"] <= 1.0
    assert "route/turn_flip_rate" in json.loads((out / "quantities.json").read_text())
    assert 'kind = "guess"' in (out / "config.toml").read_text()
