from dataclasses import replace

import pytest
import torch
from alike import COLUMNS, differing, doubled, refusal, same
from made import made
from writers_skyrl import fields, save, saved, write

from firstorder.core.errors import DataError
from firstorder.core.formats.format import Options
from firstorder.core.formats.registry import open_dump
from firstorder.core.formats.skyrl import SKYRL, read

HELD = tuple(name for name in COLUMNS if name not in ("routes_old", "entropy", "version"))
NAME = "global_step_0_training_input.pkl"


def back(paths):
    return list(read(paths, Options()))


def group_of(samples):
    """Prompts of a batch are numbered from 0 on."""
    first = {step: min(s.group for s in samples if s.step == step) for step in {s.step for s in samples}}
    return [replace(s, group=s.group - first[s.step], reward=None) for s in samples]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"routed": torch.uint8},
        {"routed": torch.int16},
        {"rebuilt": False},
        {"module": "skyrl_train__training_batch"},
        {"old": True},
        {"old": True, "form": saved, "rebuilt": False, "module": "skyrl_train__training_batch"},
    ],
)
def test_a_batch_gives_the_samples_to_the_last_digit(tmp_path, how):
    samples = made(seed=9, steps=2)
    read_back = back(write(tmp_path, samples, **how)[::-1])
    assert [differing(a, b, HELD) for a, b in zip(group_of(samples), read_back, strict=True)] == [[]] * len(samples)
    assert read_back[7].source == f"{tmp_path}/dumped_data/global_step_1_training_input.pkl row 1"
    assert all(torch.equal(s.columns["base_action_log_probs"], s.logp_old) for s in read_back)


def test_a_copy_shifted_by_one_row_is_read_back_shifted(tmp_path):
    samples = group_of(made(seed=9, steps=1))
    moved = [replace(s, logp_old=s.logp_old.roll(1), routes=s.routes.roll(1, 0)) for s in samples]
    assert not any(same(a, b, HELD) for a, b in zip(samples, back(write(tmp_path, moved)), strict=True))


@pytest.mark.parametrize(
    ("metadata", "groups"),
    [
        ({"policy_prompt_boundaries": [(0, 2), (2, 5), (5, 6)]}, [0, 0, 1, 1, 1, 2]),
        ({"policy_prompt_boundaries": [(0, 2), (99, 5)]}, [None] * 6),
        ({"trajectory_ids": ["a_b_0", "a_b_1", "c_0", "a_b_2", "c_1", "c_2"]}, [0, 0, 1, 0, 1, 1]),
        ({"trajectory_ids": ["a_0"]}, [None] * 6),
    ],
)
def test_prompts_are_told_by_what_the_trainer_leaves_of_them(tmp_path, metadata, groups):
    path = save(tmp_path / NAME, fields(made(steps=1)), metadata)
    assert [sample.group for sample in back([path])] == groups


def test_a_field_that_is_none_is_left_out_in_either_form(tmp_path):
    for form in ({}, {"form": saved, "rebuilt": False}):
        first = back([save(tmp_path / NAME, fields(made(steps=1)) | {"action_log_probs": None}, None, **form)])[0]
        assert first.logp_old is None
        assert first.logp_mu is not None


def test_rows_that_fill_up_the_batch_are_left_out(tmp_path):
    samples = made(seed=9, steps=1)
    path = save(tmp_path / NAME, fields(samples), {"pad_size": 2})
    assert len(back([path])) == len(samples) - 2


def test_numbers_of_a_kind_that_numpy_lacks_are_read(tmp_path):
    samples = made(seed=9, steps=1)
    batch = fields(samples)
    batch["action_log_probs"] = batch["action_log_probs"].bfloat16()
    (one, *_), first = back([save(tmp_path / NAME, batch, None)]), samples[0]
    assert torch.equal(one.logp_old, first.logp_old.bfloat16().double())


def test_without_the_mask_of_routes_padding_is_kept_counted_and_told_by_the_user(tmp_path):
    samples = made(seed=9, steps=1)
    batch = fields(samples) | {"router_padding_mask": None}
    gone = batch["rollout_expert_indices"][0]
    gone[-4:-1] = torch.arange(2, dtype=torch.int32)
    path = save(tmp_path / NAME, batch, None)
    plain, told = back([path])[0], next(open_dump([path], "skyrl", Options(fill="arange")).samples())
    assert plain.notes["route rows that are 0, 1, ..., k - 1 in every layer, as padding is"] == 3
    assert plain.routes[-2].tolist() == [[0, 1]] * 3
    assert set(told.routes[-4:].flatten().tolist()) == {-1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequences": None}, "`tokens` must be of rows and columns; got NoneType"),
        ({"loss_mask": None, "response_mask": None}, "neither `loss_mask` nor `response_mask`"),
        ({"action_log_probs": torch.zeros(2, 3)}, "`action_log_probs` must have 6 rows of a response; got 2 x 3"),
        ({"attention_mask": torch.ones(6, 2)}, "`attention_mask` 6 x 2"),
        ({"rollout_expert_indices": torch.zeros(6, 1, 3, 2)}, "must have a row for every token"),
        ({"advantages": {"format": "numpy", "data": b"1234", "shape": (9, 9), "dtype": "float32"}}, "9 x 9 numbers"),
        ({"advantages": {"format": "numpy", "data": b"1234", "shape": (1,), "dtype": "object"}}, "kind 'object'"),
        ({"advantages": {"format": "tensor_list", "items": []}}, "the format 'tensor_list' is not read"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_file(tmp_path, change, message):
    path = save(tmp_path / NAME, fields(made(steps=1)) | change, None)
    with pytest.raises(DataError, match=message) as refused:
        back([path])
    assert NAME in str(refused.value)
    assert "\n" not in str(refused.value)


def test_routes_of_a_form_that_is_not_read_are_left_out_and_counted(tmp_path):
    samples = made(steps=1)
    packed = {"format": "packed", "values": {}, "cu_seqlens": {}}
    first = back([save(tmp_path / NAME, fields(samples) | {"rollout_expert_indices": packed}, None)])[0]
    assert first.routes is None
    assert first.notes == {"`rollout_expert_indices` of a form that is not read, left out": 1}
    assert torch.equal(first.logp_mu, samples[0].logp_mu)


def test_holes_in_the_attention_mask_are_refused(tmp_path):
    batch = fields(made(steps=1))
    batch["attention_mask"][2, -2] = 0
    with pytest.raises(DataError, match="row 2: `attention_mask` has holes"):
        back([save(tmp_path / NAME, batch, None)])


def test_a_name_without_a_step_is_refused(tmp_path):
    path = save(tmp_path / "mine.pkl", fields(made(steps=1)), None)
    with pytest.raises(DataError, match="its name says no step"):
        back([path])


def test_files_are_recognised_by_the_class_that_they_name(tmp_path):
    (path,) = write(tmp_path, made(steps=1))
    assert SKYRL.recognise(path)
    (tmp_path / "other.pkl").write_bytes(b"\x80\x04N.")
    assert not SKYRL.recognise(tmp_path / "other.pkl")
    assert not SKYRL.recognise(tmp_path / "missing.pkl")


@pytest.mark.parametrize("part", ["data", "shape", "dtype", "format"])
def test_a_value_that_refers_to_itself_over_and_over_is_never_walked_through(tmp_path, part):
    batch = fields(made(steps=1))
    odd = {"format": "numpy", "data": b"1234", "shape": (1,), "dtype": "float32"} | {part: doubled()}
    refused = refusal(lambda: back([save(tmp_path / NAME, batch | {"advantages": odd}, {"uids": doubled()})]))
    assert NAME in refused
    assert "\n" not in refused
    plain = save(tmp_path / NAME, batch, {"uids": doubled(), "pad_size": doubled()})
    assert len(back([plain])) == 6
