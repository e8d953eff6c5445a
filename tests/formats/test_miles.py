from dataclasses import replace

import pytest
import torch
import writers_slime as slime
from alike import COLUMNS, differing, same
from hypothesis import given, settings
from hypothesis import strategies as st
from made import made
from writers_miles import held, losses, shard, write

from firstorder.core.errors import DataError
from firstorder.core.formats.format import Options
from firstorder.core.formats.miles import MILES, pieces, read
from firstorder.core.formats.slime import SLIME

HELD = tuple(name for name in COLUMNS if name != "routes_old")


def back(paths):
    return list(read(paths, Options()))


@pytest.mark.parametrize(("cp_size", "qkv_format"), [(1, "thd"), (2, "thd"), (3, "thd"), (2, "bshd")])
def test_the_slices_of_all_ranks_give_the_samples_to_the_last_digit(tmp_path, cp_size, qkv_format):
    samples = made(seed=8, steps=2)
    read_back = back(write(tmp_path, samples, cp_size, qkv_format=qkv_format)[::-1])
    assert [differing(a, b, HELD) for a, b in zip(samples, read_back, strict=True)] == [[]] * len(samples)


def test_a_copy_shifted_by_one_row_is_read_back_shifted(tmp_path):
    samples = made(seed=8, steps=1)
    moved = [replace(s, logp_old=s.logp_old.roll(1), routes=s.routes.roll(1, 0)) for s in samples]
    assert not any(same(a, b, HELD) for a, b in zip(samples, back(write(tmp_path, moved, 2)), strict=True))


@settings(max_examples=200, deadline=None)
@given(prompt=st.integers(0, 20), response=st.integers(0, 60), size=st.integers(2, 5), more=st.integers(0, 9))
def test_every_entry_is_of_one_rank_and_in_the_order_of_its_positions(prompt, response, size, more):
    total = prompt + response
    if prompt == 0 or total == 0:
        return
    padded = total + more if more else None
    every = torch.arange(response)
    cut = [[every[part] for part in pieces(total, response, rank, size, padded)] for rank in range(size)]
    assert [torch.cat(two).tolist() for two in cut] == [
        held(total, response, rank, size, padded).tolist() for rank in range(size)
    ]
    assert sorted(torch.cat([part for two in cut for part in two]).tolist()) == every.tolist()


def test_a_rank_that_is_missing_is_named(tmp_path):
    files = write(tmp_path, made(steps=1), 3, dp_size=1)
    with pytest.raises(DataError, match=r"ranks \[2\] of 3 are missing; give the files of all ranks"):
        back(files[:-1])


def save(path, step=0, **saved):
    torch.save({"rollout_id": step, **saved}, path)
    return path


def test_a_file_of_no_rank_is_read_whole_and_other_pipeline_stages_are_left_out(tmp_path):
    samples = made(steps=1)
    stages = [
        save(tmp_path / "0_0.pt", **shard(samples, range(6), 0, said=False, drop=("log_probs", "entropy"))),
        save(tmp_path / "0_1.pt", **shard(samples, range(6), 1, said=False)),
    ]
    held_ = [name for name in HELD if name not in ("routes", "version")]
    assert all(same(a, b, held_, ("step",)) for a, b in zip(samples, back(stages), strict=True))


def test_a_slice_that_says_no_rank_is_refused(tmp_path):
    path = save(tmp_path / "0_1.pt", **shard(made(steps=1), range(6), 1, 0, 2, said=False))
    with pytest.raises(DataError, match="says no `cp_rank`: slices can be joined only where it is said"):
        back([path])


def test_the_policy_loss_is_read_where_it_is_alone(tmp_path):
    samples = made(steps=1)
    late, early = losses(tmp_path, samples[3:], call=10), losses(tmp_path, samples[:3], call=9)
    read_back = back([late, early])
    held_ = ("mask", "logp_mu", "logp_old", "advantage")
    assert all(same(a, b, held_, ()) for a, b in zip(samples, read_back, strict=True))
    assert [sample.step for sample in read_back] == [9, 9, 9, 10, 10, 10]
    assert read_back[0].notes == {"tokens that the dump does not hold": len(samples[0].tokens)}
    now = torch.where(samples[0].mask, (samples[0].logp_old.float() - 0.5).double(), 0.0)
    assert torch.equal(read_back[0].columns["train_log_probs"], now)
    both = back([late, *write(tmp_path, samples)])
    assert all(same(a, b, HELD) for a, b in zip(samples, both, strict=True))


def test_a_slice_of_the_policy_loss_is_refused(tmp_path):
    path = losses(tmp_path, made(steps=1, longest=9)[:1], cut=1)
    with pytest.raises(DataError, match="the file does not say of which context-parallel rank"):
        back([path])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cp_rank": 4, "cp_size": 2}, "`cp_rank` 4 of `cp_size` 2 is no rank"),
        ({"rollout_data": [1]}, "`rollout_data`: a dict is expected, got list"),
        ({"rollout_data": {}}, "`tokens` is missing"),
        ({"rollout_data": {"tokens": [[1, 2]], "response_lengths": [1, 1]}}, "must have an entry a sequence, 1"),
        ({"qkv_format": "bshd", "cp_size": 2}, "slices ranks"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_file(tmp_path, change, message):
    path = save(tmp_path / "0_1.pt", **(shard(made(steps=1), range(6), 1) | change))
    with pytest.raises(DataError, match=message) as refused:
        back([path])
    assert "0_1.pt" in str(refused.value)


def test_files_are_recognised_and_a_rollout_file_goes_with_its_train_files(tmp_path):
    files = [*write(tmp_path / "miles", made(steps=1)), losses(tmp_path / "miles", made(steps=1))]
    assert all(MILES.recognise(path) and not SLIME.recognise(path) for path in files)
    assert not any(MILES.recognise(path) for path in slime.write(tmp_path / "slime", made(steps=1)))
