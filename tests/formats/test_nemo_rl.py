import json

import pytest
from fuzzing import broken, outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from made import made
from same import differing, same, shifted
from writers_nemo_rl import record, write

from firstorder.core.errors import DataError
from firstorder.core.formats.format import Options
from firstorder.core.formats.nemo_rl import NEMO_RL

HELD = ("step", "tokens", "mask", "logp_mu", "logp_old", "advantage", "reward")


def read(paths):
    return list(NEMO_RL.read(paths, Options()))


def single(folder, *rows):
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / "train_data_step3.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row_of(sample, **changed):
    return record(sample, len(sample.tokens) + 2, routes=True) | {"idx": 0} | changed


def refused(folder, row):
    with pytest.raises(DataError) as error:
        read([single(folder, row)])
    assert "train_data_step3.jsonl line 1: " in str(error.value)
    return str(error.value)


def test_samples_come_back_to_the_last_digit(tmp_path):
    samples = made(count=4, steps=12)
    paths = write(tmp_path, samples)
    assert paths != sorted(paths, key=lambda path: int(path.stem[15:]))  # step 10 comes before step 2 by name
    assert differing(read(paths), samples, HELD) == set()


@pytest.mark.parametrize("name", ["logp_mu", "logp_old", "routes"])
def test_a_copy_one_row_off_reads_back_otherwise(tmp_path, name):
    samples = made(count=4, steps=1)
    paths = write(tmp_path, [shifted(sample, name) for sample in samples], routes=True)
    assert differing(read(paths), samples, (*HELD, "routes")) == {name}


def test_routes_on_the_wire_come_back(tmp_path):
    samples = made(count=4, steps=1)
    samples[1].routes[2] = -1
    assert differing(read(write(tmp_path, samples, routes=True)), samples, (*HELD, "routes")) == set()


def test_trainer_log_probs_that_were_not_computed_are_no_mismatch(tmp_path):
    samples = made(count=2, steps=1)
    for got in read(write(tmp_path, samples, computed=False)):
        assert got.logp_old is None
        assert got.notes == {"responses whose prev_logprobs are all 0: not computed": 1}


def test_a_response_out_of_the_loss_is_masked_and_noted(tmp_path):
    (sample, *_) = made(count=1, steps=1)
    (got,) = read([single(tmp_path, row_of(sample, sample_loss_mask=[0.0]))])
    assert not got.mask.any()
    assert got.notes == {"responses left out of the loss": 1}


def test_a_reward_that_is_no_number_is_none_and_noted(tmp_path):
    (sample, *_) = made(count=1, steps=1)
    (got,) = read([single(tmp_path, row_of(sample, rewards=[None]))])
    assert got.reward is None
    assert got.notes == {"null rewards": 1}


def test_an_advantage_for_all_tokens_is_that_of_each(tmp_path):
    (sample, *_) = made(count=1, steps=1)
    (got,) = read([single(tmp_path, row_of(sample, advantages=[-0.5]))])
    assert got.advantage.tolist() == [-0.5] * len(sample.tokens)


def test_other_lists_of_numbers_are_columns_and_infinities_are_counted(tmp_path):
    (sample, *_) = made(count=1, steps=1)
    row = row_of(sample)
    row["generation_logprobs"][0][1] = float("-inf")
    row["reference_policy_logprobs"] = row["prev_logprobs"]
    (got,) = read([single(tmp_path, row)])
    assert set(got.columns) == {"reference_policy_logprobs"}
    assert same(got.columns["reference_policy_logprobs"], sample.logp_old)
    assert got.notes == {"null generation_logprobs": 1}
    assert got.logp_mu.isnan().nonzero().tolist() == [[1]]


def test_what_does_not_fit_is_refused(tmp_path):
    (sample, *_) = made(count=1, steps=1)
    whole = row_of(sample)
    longest = len(sample.tokens) + 2
    for name in ("token_ids", "input_lengths"):
        assert f"lacks `{name}`; only runs of GRPO" in refused(tmp_path, {k: v for k, v in whole.items() if k != name})
    assert f"`input_lengths` must be in 1 .. {longest}" in refused(tmp_path, whole | {"input_lengths": [longest + 1]})
    assert f"`input_lengths` must be in 1 .. {longest}" in refused(tmp_path, whole | {"input_lengths": [0]})
    assert "`rewards` must be a list of length 1" in refused(tmp_path, whole | {"rewards": [1.0, 2.0]})
    assert "`token_ids` must be a list of length 1" in refused(tmp_path, whole | {"token_ids": [1, 2, 3]})
    assert "`sample_loss_mask` must be 0 or 1, got 0.5" in refused(tmp_path, whole | {"sample_loss_mask": [0.5]})
    assert "routes must be `nrlre1:" in refused(tmp_path, whole | {"routed_experts": ["AAAA"]})


def test_its_files_are_recognised_by_their_names(tmp_path):
    for path in write(tmp_path, made(count=1, steps=1)):
        assert NEMO_RL.recognise(path)
        other = path.rename(tmp_path / "val_data_step0.jsonl")
        assert not NEMO_RL.recognise(other)
    assert not NEMO_RL.recognise(tmp_path)
    (tmp_path / "train_data_step1.jsonl").mkdir()
    assert not NEMO_RL.recognise(tmp_path / "train_data_step1.jsonl")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_a_broken_file_gives_samples_or_names_its_line(tmp_path_factory, seed):
    path = single(tmp_path_factory.getbasetemp() / "fuzz", *map(row_of, made(count=2, steps=1, longest=6)))
    path.write_bytes(broken(path.read_bytes(), seed))
    outcome(NEMO_RL, path)
