import json
import math

import pytest
import torch
from fuzzing import broken, outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from made import made
from same import differing, shifted
from writers_prime_rl import in_order, line, record, write

from firstorder.core.errors import DataError
from firstorder.core.formats import prime_rl_writer
from firstorder.core.formats.chunk import chunks
from firstorder.core.formats.format import Options
from firstorder.core.formats.prime_rl import PRIME_RL

HELD = ("step", "tokens", "mask", "logp_mu", "logp_old", "entropy", "advantage", "reward")


def read(paths):
    return list(PRIME_RL.read(paths, Options()))


def single(folder, text):
    path = folder / "token_exports" / "step_3" / "rank_0.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "STABLE").touch()
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(folder, text):
    path = single(folder, text)
    with pytest.raises(DataError) as error:
        read([path])
    assert str(error.value).startswith(f"{path} line ")
    return str(error.value)


def test_samples_come_back_to_the_last_digit(tmp_path):
    samples = made(count=5, steps=3)
    paths = write(tmp_path, samples, ranks=2)
    assert differing(read(reversed(paths)), in_order(samples, 2), HELD) == set()


@pytest.mark.parametrize("name", ["logp_mu", "logp_old", "entropy"])
def test_a_copy_one_row_off_reads_back_otherwise(tmp_path, name):
    samples = made(count=4, steps=1)
    paths = write(tmp_path, [shifted(sample, name) for sample in samples])
    assert differing(read(paths), samples, HELD) == {name}


def test_steps_and_ranks_are_ordered_as_numbers(tmp_path):
    samples = [s for step in (2, 10, 9) for s in made(seed=step, count=11, steps=1)]
    samples = [s.__class__(**{**s.__dict__, "step": (2, 10, 9)[i // 11]}) for i, s in enumerate(samples)]
    paths = write(tmp_path, samples, ranks=11)
    found = read(paths)
    assert [s.step for s in found] == [2] * 11 + [9] * 11 + [10] * 11
    assert [s.source.split("rank_")[1] for s in found[:11]] == [f"{rank}.jsonl line 1" for rank in range(11)]


def test_files_of_many_steps_are_merged_by_step(tmp_path):
    samples = made(count=2, steps=3)
    ranks = [tmp_path / f"rank_{rank}.jsonl" for rank in (0, 1)]
    for rank, path in enumerate(ranks):
        path.write_text("".join(line(sample, rank) for sample in samples[rank::2]))
        assert PRIME_RL.recognise(path)
    assert differing(read(ranks), samples, HELD) == set()


def test_the_reward_is_that_of_the_sampled_tokens(tmp_path):
    (sample, *_) = made(count=1, steps=1)
    (got,) = read([single(tmp_path, line(sample, rewards=torch.where(sample.mask, 0.25, 0.0).tolist()))])
    assert got.reward == 0.25
    assert "rewards" not in got.columns


def test_every_other_column_is_kept_under_its_own_name(tmp_path):
    (sample, *_) = made(count=1, steps=1)
    extra = {"temperatures": [0.7] * len(sample.tokens), "words": ["a"] * len(sample.tokens), "few": [1], "odd\n": [2]}
    (got,) = read([single(tmp_path, line(sample, **extra))])
    d = sample.logp_old - sample.logp_mu
    assert set(got.columns) == {
        "position_ids", "mismatch_kl", "log_importance_ratio", "importance_ratio", "prob_delta", "is_masked",
        "is_masked_high", "temperatures",
    }  # fmt: skip
    assert torch.equal(got.columns["log_importance_ratio"], d)
    assert got.columns["position_ids"].tolist() == list(range(len(d)))
    assert got.columns["is_masked"].tolist() == [0.0] * len(d)
    assert got.notes == {"lists that hold no numbers": 4}  # losses, words, few, odd


def test_nulls_are_kept_as_nan_and_counted(tmp_path):
    (sample, *_) = made(count=1, steps=1)
    row = record(sample)
    row["inference_logprobs"][-1] = None
    row["trainer_logprobs"][-2:] = [None, None]
    (got,) = read([single(tmp_path, json.dumps(row) + "\n")])
    assert got.logp_mu.isnan().nonzero().flatten().tolist() == [len(got.tokens) - 1]
    assert got.logp_old.isnan().sum() == 2
    assert got.notes["null inference_logprobs"] == 1
    assert got.notes["null trainer_logprobs"] == 2


def test_a_column_that_was_not_computed_is_none_and_noted(tmp_path):
    (sample, *_) = made(count=1, steps=1)
    nulls = [None] * len(sample.tokens)
    (got,) = read([single(tmp_path, line(sample, trainer_logprobs=nulls, advantages=nulls, rewards=nulls))])
    assert got.logp_old is None
    assert got.advantage is None
    assert got.reward is None
    assert got.notes["null trainer_logprobs"] == len(nulls)


def test_rewards_that_differ_are_a_column(tmp_path):
    (sample, *_) = made(count=1, steps=1)
    (got,) = read([single(tmp_path, line(sample, rewards=list(range(len(sample.tokens)))))])
    assert got.reward is None
    assert got.columns["rewards"].tolist() == list(range(len(sample.tokens)))


def test_the_step_of_the_run_counts_where_there_is_one(tmp_path):
    (sample, *_) = made(count=1, steps=1)
    assert read([single(tmp_path, line(sample, step=7, export_step=3))])[0].step == 3
    row = record(sample) | {"step": 7}
    del row["export_step"]
    assert read([single(tmp_path, json.dumps(row))])[0].step == 7


def test_a_step_that_is_not_whole_is_noted_once(tmp_path):
    (path,) = write(tmp_path, made(count=3, steps=1))
    assert [sample.notes for sample in read([path])] == [{"lists that hold no numbers": 1}] * 3
    (path.parent / "STABLE").unlink()
    noted = [sample.notes.get("files of steps that are not marked STABLE") for sample in read([path])]
    assert noted == [1, None, None]


def test_samples_of_many_responses_lie_side_by_side(tmp_path):
    samples = made(count=4, steps=1)
    (chunk,) = chunks(read(write(tmp_path, samples)))
    assert chunk.logp_mu.shape == chunk.column("mismatch_kl").shape
    ratio = torch.where(chunk.mask, chunk.logp_old - chunk.logp_mu, 0.0).exp()
    assert torch.equal(chunk.stats().mask, chunk.usable)
    assert torch.allclose(chunk.column("importance_ratio")[chunk.usable], ratio[chunk.usable], rtol=1e-12)


def test_what_does_not_fit_is_refused(tmp_path):
    (sample, *_) = made(count=1, steps=1)
    length = len(sample.tokens)
    good = line(sample)
    assert "line 2: is of schema version 2, and this program reads 1; update" in refused(
        tmp_path, good + line(sample, schema_version=2)
    )
    assert f"`entropy` has 1 entries, and there are {length} tokens" in refused(tmp_path, line(sample, entropy=[1.0]))
    assert "`tokens` is empty" in refused(
        tmp_path,
        line(sample, **{name: [] for name, value in record(sample).items() if isinstance(value, list)}),
    )
    assert "lacks `loss_mask`" in refused(
        tmp_path, json.dumps({k: v for k, v in record(sample).items() if k != "loss_mask"}) + "\n"
    )
    assert "line 1: the last line is cut off" in refused(tmp_path, good[:-20])


def test_its_files_are_recognised_and_no_others(tmp_path):
    (path,) = write(tmp_path, made(count=1, steps=1))
    assert PRIME_RL.recognise(path)
    assert not PRIME_RL.recognise(path.parent / "STABLE")
    assert not PRIME_RL.recognise(path.parent)
    assert not PRIME_RL.recognise(tmp_path / "nothing.jsonl")
    empty = path.parent / "rank_7.jsonl"
    empty.touch()
    assert PRIME_RL.recognise(empty)
    assert read([empty]) == []
    other = tmp_path / "other.jsonl"
    other.write_text('{"step": 1, "token_ids": [1]}\n')
    assert not PRIME_RL.recognise(other)


def test_a_run_of_this_program_reads_back_to_the_last_digit(tmp_path):
    samples = made(count=4, steps=2)
    paths = [prime_rl_writer.write(tmp_path, step, (s for s in samples if s.step == step)) for step in (0, 1)]
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "token_exports/step_0/rank_0.jsonl",
        "token_exports/step_1/rank_0.jsonl",
    ]
    assert all(PRIME_RL.recognise(path) and (path.parent / "STABLE").read_bytes() == b"" for path in paths)
    assert sorted(each.name for each in paths[0].parent.iterdir()) == ["STABLE", "rank_0.jsonl"]
    assert differing(read(paths), samples, HELD) == set()


def test_what_this_program_writes_has_the_fields_and_types_of_the_framework(tmp_path):
    (sample, *_) = made(count=1, steps=1)
    mine = json.loads(prime_rl_writer.write(tmp_path, 0, [sample]).read_text())
    theirs = json.loads(line(sample))
    assert list(mine) == list(theirs)
    for name, value in theirs.items():
        if isinstance(value, list):
            assert len(mine[name]) == len(value), name
            if name not in ("is_masked", "is_masked_high", "is_masked_low"):
                assert set(map(type, mine[name])) == set(map(type, value)), name
        elif name != "env_name":
            assert mine[name] == value, name
    for name in ("mismatch_kl", "importance_ratio", "prob_delta", "log_importance_ratio"):
        assert mine[name] == pytest.approx(theirs[name], rel=1e-12, abs=1e-15), name


def test_a_sample_without_the_trainers_side_is_written_with_nulls(tmp_path):
    (sample, *_) = made(count=1, steps=1)
    bare = sample.__class__(source="x", step=0, tokens=sample.tokens, mask=sample.mask, logp_mu=sample.logp_mu)
    bare.logp_mu[-1] = math.nan
    (got,) = read([prime_rl_writer.write(tmp_path, 0, [bare])])
    assert got.logp_old is None
    assert got.reward is None
    assert got.logp_mu.isnan().sum() == 1
    assert set(got.columns) == {"position_ids"}


def test_responses_without_a_token_in_the_loss_are_left_out(tmp_path):
    samples = made(count=2, steps=1)
    samples[0].mask.zero_()
    assert len(read([prime_rl_writer.write(tmp_path, 0, samples)])) == 1


def test_a_write_that_fails_leaves_the_old_step(tmp_path):
    def failing():
        yield made(count=1, steps=1)[0]
        raise OSError(28, "No space left on device")

    path = prime_rl_writer.write(tmp_path, 0, made(count=2, steps=1))
    with pytest.raises(OSError, match="No space"):
        prime_rl_writer.write(tmp_path, 0, failing())
    assert len(read([path])) == 2
    assert len(list(path.parent.iterdir())) == 2


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_a_broken_file_gives_samples_or_names_its_line(tmp_path_factory, seed):
    good = "".join(line(sample) for sample in made(count=2, steps=1, longest=6))
    outcome(PRIME_RL, single(tmp_path_factory.getbasetemp() / "fuzz", broken(good.encode(), seed)))
