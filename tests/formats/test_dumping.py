import pytest
import torch

import firstorder as fo
from firstorder.core.formats.chunk import chunks
from firstorder.core.formats.registry import open_dump
from firstorder.core.training.diagnostics import diagnose

SMALL = {"schedule.steps": 3, "schedule.prompts": 4, "schedule.group_size": 4}


def logged(dump, step):
    (chunk,) = chunks(s for s in open_dump([dump]).samples() if s.step == step)
    return chunk, diagnose(chunk.stats())


def test_a_dump_holds_the_batches_that_the_run_logged(tmp_path):
    run = fo.train("minirl-r3", SMALL, out=tmp_path / "run", dump="neutral")
    for line in run.steps:
        chunk, numbers = logged(tmp_path / "run/dump", line["step"])
        for name in ("kl", "k3_kl", "chi2_token", "rollout_actor_probs_pearson_corr", "second_order_remainder"):
            torch.testing.assert_close(float(numbers[name]), line[name], rtol=1e-12, atol=1e-18)
        assert abs(float(chunk.rewards.mean()) - line["reward"]) < 1e-15
        assert float(chunk.stats().token_advantage.abs().sum()) > 0


def test_members_have_folders_of_their_own(tmp_path):
    run = fo.train("minirl", SMALL, members=2, out=tmp_path / "run", dump="neutral")
    for member in (0, 1):
        _, numbers = logged(tmp_path / f"run/dump/member_{member}", 1)
        torch.testing.assert_close(float(numbers["kl"]), run.steps[1]["kl"][member], rtol=1e-12, atol=1e-18)


def test_the_same_run_writes_the_same_bytes_and_a_step_that_is_repeated_replaces_its_file(tmp_path):
    for name in ("a", "b"):
        fo.train("minirl-r3", SMALL, out=tmp_path / name, dump="neutral")
    files = [sorted((tmp_path / name / "dump").iterdir()) for name in ("a", "b")]
    assert [f.name for f in files[0]] == [f"step_{step:06d}.parquet" for step in range(3)]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]


def test_a_form_that_is_not_known_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(fo.ConfigError, match="--dump-format must be neutral"):
        fo.train("minirl", SMALL, out=tmp_path / "run", dump="csv")
    assert not (tmp_path / "run").exists()
