import dataclasses
import json

import pytest
import torch
import writers_nemo_rl
import writers_prime_rl
from fuzzing import broken, outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from made import made
from same import differing, same, shifted
from writers_responses import chat, completion, generate, openai, prompt_of, split, spoken, whole_lists, write

from firstorder.core.errors import DataError
from firstorder.core.formats.format import Options
from firstorder.core.formats.nemo_rl import NEMO_RL
from firstorder.core.formats.prime_rl import PRIME_RL
from firstorder.core.formats.registry import open_dump
from firstorder.core.formats.sglang import SGLANG, distinct
from firstorder.core.formats.vllm import VLLM

HELD = ("step", "tokens", "mask", "logp_mu", "routes", "group")
FORMATS = (PRIME_RL, NEMO_RL, VLLM, SGLANG)
VLLMS = {"completion": completion, "chat": chat, "0.21": split, "0.20": whole_lists}
SGLANGS = {"generate": generate, "openai": openai}
ANSWERS = {name: (VLLM, answer) for name, answer in VLLMS.items()} | {n: (SGLANG, a) for n, a in SGLANGS.items()}


def samples_of(**options):
    """Samples that have come to no environment; equal prompts are one group, numbered as they come."""
    found = spoken(made(**options))
    prompts = [tuple(sample.tokens[: prompt_of(sample)].tolist()) for sample in found]
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    return [dataclasses.replace(s, group=numbers[p], version=None) for s, p in zip(found, prompts, strict=True)]


def read(format, paths, **options):
    return list(format.read(paths, Options(**options)))


def held(format):
    return (*HELD, "version") if format is SGLANG else HELD


def versioned(format, samples):
    """SGLang says which weights sampled."""
    if format is VLLM:
        return samples
    return [dataclasses.replace(s, version=torch.where(s.mask, s.step, -1)) for s in samples]


def single(folder, *answers):
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    return path


def refused(format, folder, answer, **options):
    path = single(folder, answer)
    with pytest.raises(DataError) as error:
        read(format, [path], **options)
    assert str(error.value).startswith(f"{path} line 1")
    return str(error.value)


@pytest.mark.parametrize("name", ANSWERS)
def test_samples_come_back_to_the_last_digit(tmp_path, name):
    format, answer = ANSWERS[name]
    samples = samples_of(count=6, steps=11)
    got = read(format, write(tmp_path, samples, answer)[::-1])
    if format is SGLANG and name == "generate":  # null before the first token, as the server has it
        assert all(sample.logp_mu[0].isnan() for sample in got)
        got = [dataclasses.replace(sample, logp_mu=sample.logp_mu.nan_to_num(0.0)) for sample in got]
    assert differing(got, versioned(format, samples), held(format)) == set()
    assert [sample.notes for sample in got[1:]] == [{}] * (len(got) - 1)
    assert got[0].notes == ({} if format is VLLM else {"experts a token taken to be 2": 1})


@pytest.mark.parametrize("column", ["logp_mu", "routes"])
@pytest.mark.parametrize("name", ANSWERS)
def test_a_copy_one_row_off_reads_back_otherwise(tmp_path, name, column):
    format, answer = ANSWERS[name]
    samples = samples_of(count=6, steps=1)
    right = read(format, write(tmp_path / "right", samples, answer), top_k=2)
    moved = [shifted(sample, column) for sample in samples]
    if name in ("completion", "chat", "0.20"):  # the row -1 comes to the front, and these versions have no -1
        moved = [dataclasses.replace(s, routes=s.routes.clamp(min=0)) for s in moved]
    wrong = read(format, write(tmp_path / "wrong", moved, answer), top_k=2)
    assert differing(wrong, right, held(format)) == {column}


@pytest.mark.parametrize("start", [1, 3])
def test_the_first_rows_may_be_missing(tmp_path, start):
    samples = [s for s in samples_of(count=12, steps=1) if prompt_of(s) >= start]
    assert samples
    for format, answer in ((VLLM, completion), (SGLANG, generate)):
        paths = write(tmp_path / format.name, samples, lambda s, answer=answer: answer(s, start))
        for got, sample in zip(read(format, paths, top_k=2), samples, strict=True):
            assert (got.routes[:start] == -1).all()
            assert torch.equal(got.routes[start:], sample.routes[start:])
            assert got.notes == {"route rows missing at the start": start}


def test_where_the_first_row_belongs_may_be_said(tmp_path):
    (sample, *_) = samples_of(count=2, steps=1)
    answer = completion(sample, 2)
    answer["choices"][0]["routed_experts_prompt_start"] = 1
    (got,) = read(VLLM, [single(tmp_path, answer)])
    assert torch.equal(got.routes[1:-2], sample.routes[2:-1])
    assert got.notes == {"route rows missing at the start": 1, "route rows missing at the end": 1}
    answer["choices"][0]["routed_experts_prompt_start"] = 4
    assert "from token 4 on, and there are" in refused(VLLM, tmp_path, answer)


def test_wide_ids_come_back(tmp_path):
    (sample, *_) = samples_of(count=2, steps=1)
    wide = dataclasses.replace(sample, routes=torch.where(sample.routes < 0, -1, sample.routes + 300))
    (got,) = read(VLLM, [single(tmp_path, completion(wide, dtype=torch.uint16))])
    assert torch.equal(got.routes, wide.routes)


def test_cached_rows_are_missing(tmp_path):
    (sample, *_) = samples_of(count=2, steps=1)
    sample.routes[: prompt_of(sample)] = -1
    (got,) = read(VLLM, [single(tmp_path, split(sample))])
    assert torch.equal(got.routes, sample.routes)


def test_routes_of_the_sampled_tokens_alone_follow_the_prompt(tmp_path):
    (sample, *_) = samples_of(count=2, steps=1)
    (got,) = read(VLLM, [single(tmp_path, split(sample) | {"prompt_routed_experts": None})])
    assert (got.routes[: prompt_of(sample)] == -1).all()
    assert torch.equal(got.routes[prompt_of(sample) :], sample.routes[prompt_of(sample) :])


def test_every_choice_is_a_sample_and_equal_prompts_are_one_group(tmp_path):
    first, second = samples_of(count=2, steps=1)
    answer = chat(first)
    answer["choices"] = [answer["choices"][0], chat(second)["choices"][0]]
    other = completion(second)
    got = read(VLLM, [single(tmp_path, answer, other, completion(first))])
    assert [sample.source.split("line ")[1] for sample in got] == [
        "1 choice 0",
        "1 choice 1",
        "2 choice 0",
        "3 choice 0",
    ]
    assert [sample.group for sample in got] == [0, 0, 1, 0]


def test_an_echo_brings_the_log_probs_of_the_prompt(tmp_path):
    (sample, *_) = samples_of(count=2, steps=1)
    answer, prompt = completion(sample), prompt_of(sample)
    said = [None, *([-0.25] * (prompt - 1)), *sample.logp_mu.tolist()[prompt:]]
    answer["choices"][0]["logprobs"]["token_logprobs"] = said
    (got,) = read(VLLM, [single(tmp_path, answer)])
    assert same(got.logp_mu, torch.tensor([float("nan"), *said[1:]], dtype=torch.float64))
    assert got.notes == {}


def test_responses_without_log_probs_or_routes_have_none(tmp_path):
    (sample, *_) = samples_of(count=2, steps=1)
    answer = completion(sample)
    answer["choices"][0] |= {"logprobs": None, "routed_experts": None}
    (got,) = read(VLLM, [single(tmp_path, answer)])
    assert got.logp_mu is None
    assert got.routes is None
    native = generate(sample)
    del native["meta_info"]["routed_experts"], native["meta_info"]["output_token_logprobs"]
    (got,) = read(SGLANG, [single(tmp_path, native)])
    assert got.logp_mu is None
    assert got.routes is None


def test_null_log_probs_are_counted(tmp_path):
    (sample, *_) = samples_of(count=2, steps=1)
    answer = completion(sample)
    answer["choices"][0]["logprobs"]["token_logprobs"][-1] = None
    assert read(VLLM, [single(tmp_path, answer)])[0].notes == {"null log-probs": 1}


def test_layers_that_are_no_moe_layers_are_left_out_where_the_user_says_so(tmp_path):
    (sample, *_) = samples_of(count=2, steps=1)
    sample.routes[:-1, 1] = 0
    for format, answer in ((VLLM, completion), (SGLANG, generate)):
        path = single(tmp_path / format.name, answer(sample))
        (got,) = open_dump([path], options=Options(layers=(0, 2))).samples()
        assert torch.equal(got.routes, sample.routes[:, [0, 2]])


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_experts_a_token_are_told_from_the_ids(tmp_path, top_k):
    samples = samples_of(count=6, steps=1, layers=8, top_k=top_k, experts=16)
    samples[0].routes[:-1, 0] = 0  # a layer without experts
    paths = write(tmp_path, samples, generate)
    got = read(SGLANG, paths)
    assert all(torch.equal(a.routes, b.routes) for a, b in zip(got, samples, strict=True))
    assert got[0].routes.shape[1:] == (8, top_k)
    assert read(SGLANG, paths, top_k=8 * top_k)[0].routes.shape[1:] == (1, 8 * top_k)


def test_ids_that_repeat_are_not_one_layers():
    assert distinct(torch.tensor([[1, 2, 2, 3]]), 2)
    assert not distinct(torch.tensor([[1, 2, 2, 3]]), 4)
    assert distinct(torch.tensor([[0, 0, 2, 3], [-1, -1, -1, -1]]), 2)


def test_what_vllm_does_not_answer_is_refused(tmp_path):
    (sample, *_) = samples_of(count=2, steps=1)
    for name in ("prompt_token_ids", "token_ids"):
        answer = completion(sample)
        del answer["choices"][0][name]
        assert f"choice 0: lacks `{name}`; ask the server with `return_token_ids`" in refused(VLLM, tmp_path, answer)
    answer = completion(sample)
    answer["choices"][0]["token_ids"].append(1)
    assert "log-probs and" in refused(VLLM, tmp_path, answer)
    answer = completion(sample)
    answer["choices"][0]["token_ids"] = []
    answer["choices"][0]["logprobs"] = None
    assert "and there are" in refused(VLLM, tmp_path, answer)
    answer = split(sample)
    answer["prompt_routed_experts"] = [[[1]]] * prompt_of(sample)
    assert "must have the same layers and experts" in refused(VLLM, tmp_path, answer)
    answer["prompt_routed_experts"].append([[1]])
    assert "`prompt_routed_experts` has" in refused(VLLM, tmp_path, answer)
    assert "lacks `choices`" in refused(VLLM, tmp_path, {"error": {"message": "no"}})


def test_what_sglang_does_not_answer_is_refused(tmp_path):
    (sample, *_) = samples_of(count=2, steps=1)
    answer = generate(sample)
    answer["output_ids"][0] += 1
    assert "`output_ids` and the tokens of `output_token_logprobs` differ" in refused(SGLANG, tmp_path, answer)
    answer = generate(sample)
    answer["meta_info"]["input_token_logprobs"] = []
    assert "lacks the tokens of the prompt; ask with `logprob_start_len` 0" in refused(SGLANG, tmp_path, answer)
    answer = generate(sample)
    del answer["output_ids"], answer["meta_info"]["output_token_logprobs"]
    assert "lacks `output_ids`" in refused(SGLANG, tmp_path, answer)
    answer = generate(sample)
    answer["meta_info"]["routed_experts_start_len"] = 1
    assert "ids, which are no" in refused(SGLANG, tmp_path, answer)
    assert "no multiple of 4; give --top-k" in refused(SGLANG, tmp_path, generate(sample), top_k=4)


def test_every_format_claims_its_own_files_and_no_others(tmp_path):
    samples = samples_of(count=2, steps=1)
    ours = {name: write(tmp_path / name, samples, answer) for name, (_, answer) in ANSWERS.items()}
    for name, paths in ours.items():
        claimed = [format.name for format in FORMATS if all(format.recognise(path) for path in paths)]
        assert claimed == [ANSWERS[name][0].name]
    for writer, name in ((writers_prime_rl, "prime-rl"), (writers_nemo_rl, "nemo-rl")):
        for path in writer.write(tmp_path / name, samples):
            assert [format.name for format in FORMATS if format.recognise(path)] == [name]
    for odd in (b"", b"\x00", b'{"a": "\\"choices\\": ["}', b'[{"choices": []}]', b"PAR1"):
        path = tmp_path / "odd.jsonl"
        path.write_bytes(odd)
        assert not any(format.recognise(path) for format in FORMATS)
    assert not any(format.recognise(tmp_path) for format in FORMATS)


@pytest.mark.parametrize("name", ANSWERS)
@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_broken_file_gives_samples_or_names_its_line(tmp_path_factory, name, seed):
    format, answer = ANSWERS[name]
    path = single(tmp_path_factory.getbasetemp() / "fuzz", *map(answer, samples_of(count=2, steps=1, longest=6)))
    path.write_bytes(broken(path.read_bytes(), seed))
    outcome(format, path)
