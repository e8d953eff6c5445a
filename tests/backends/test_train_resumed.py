"""Runs on the engines go on bit for bit: from interruptions, kills, failures and damage, and beyond their end."""

import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from small_runs import lines, sets, trained

from firstorder.backends import pair
from firstorder.backends.torchtitan.trainer import Trainer
from firstorder.cli.main import run
from firstorder.core.errors import DataError


@pytest.mark.parametrize("last", [0, 2])
def test_an_interrupted_run_goes_on_bit_for_bit(command, whole, tmp_path, monkeypatch, last):
    out = tmp_path / "run"
    save = pair.EnginePair.sync_weights

    def sync_weights(self):
        save(self)
        if self._next == last + 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pair.EnginePair, "sync_weights", sync_weights)
        assert run([*command, "--out", str(out)]) == 130
    assert run(["resume", str(out)] if last else [*command, "--out", str(out), "--resume"]) == 0
    assert lines(out, "metrics") == lines(whole, "metrics")
    assert lines(out, "receipts") == lines(whole, "receipts")


def test_a_finished_run_is_made_longer_and_is_the_one_that_was_longer_from_the_start(command, whole, tmp_path):
    out = tmp_path / "run"
    assert run([*command, *sets("schedule.steps=2"), "--out", str(out)]) == 0
    assert run(["resume", str(out), *sets("schedule.steps=4")]) == 0
    assert lines(out, "metrics") == lines(whole, "metrics")
    assert lines(out, "receipts") == lines(whole, "receipts")


@pytest.mark.parametrize("moment", ["checkpoints/torchtitan/step-2/__0_0.distcp", "checkpoints/step-0000002.pt"])
def test_a_killed_run_goes_on_bit_for_bit(command, whole, tmp_path, moment):
    out = tmp_path / "run"
    words = [sys.executable, "-c", "from firstorder.cli.main import main; main()", *command, "--out", str(out)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (out / moment).exists():
        assert process.poll() is None, process.stderr.read()[-2000:]
        assert time.monotonic() < deadline
    process.kill()  # the first moment is in the middle of a checkpoint, the second in the middle of the next step
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (out / "metrics.jsonl").read_text().count("\n") < 4
    assert run([*command, "--out", str(out), "--resume"]) == 0
    assert lines(out, "metrics") == lines(whole, "metrics")
    assert lines(out, "receipts") == lines(whole, "receipts")


def test_sigterm_ends_a_run_after_a_step_that_is_saved(command, whole, tmp_path):
    out = tmp_path / "run"
    rare = [*command, *sets("torchtitan.checkpoint_every=1000"), "--out", str(out)]
    words = [sys.executable, "-c", "from firstorder.cli.main import main; main()", *rare]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (out / "metrics.jsonl").exists():
        assert process.poll() is None, process.stderr.read()[-2000:]
        assert time.monotonic() < deadline
    process.terminate()  # at a step's end or in the next step
    _, err = process.communicate(timeout=240)
    assert process.returncode == 128 + signal.SIGTERM, err[-2000:]
    done = len(lines(out, "metrics"))
    assert 0 < done < 4
    assert [file.name for file in (out / "checkpoints").glob("*.pt")] == [f"step-{done:07d}.pt"]
    assert f"SIGTERM after step {done - 1}, saved; go on with `firstorder resume {out}`" in err
    assert run([*rare, "--resume"]) == 0
    assert lines(out, "metrics") == lines(whole, "metrics")
    assert lines(out, "receipts") == lines(whole, "receipts")


def test_a_step_that_fails_is_named_and_the_run_goes_on_bit_for_bit(command, whole, tmp_path, monkeypatch, capsys):
    out, forward, taken = tmp_path / "run", Trainer._forward, []
    broken = {5: lambda logp: logp + torch.empty(2**50), 9: lambda logp: logp * float("nan")}

    def failing(self, packed, tokens, *kept, **wanted):
        logp, *rest = forward(self, packed, tokens, *kept, **wanted)
        taken.append(logp.requires_grad)
        return broken.pop(sum(taken))(logp) if sum(taken) in broken and logp.requires_grad else logp, *rest

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_forward", failing)
        for words, remedy in (([], "lower torchtitan.microbatch_rows"), (["--resume"], "lower optimizer.lr or bound")):
            capsys.readouterr()
            assert run([*command, "--out", str(out), *words]) == 2
            err = capsys.readouterr().err
            assert remedy in err
            assert "Traceback" not in err
    assert not broken
    assert not (out / "model").exists()
    assert run([*command, "--out", str(out), "--resume", *sets("torchtitan.checkpoint_every=2")]) == 0
    assert lines(out, "metrics") == lines(whole, "metrics")
    assert lines(out, "receipts") == lines(whole, "receipts")
    assert "checkpoint_every = 2\n" in (out / "config.toml").read_text()


def test_a_checkpoint_of_another_model_is_named(solver, whole):
    held = pair.EnginePair(trained(solver, whole), None, None, None)
    state = held.state() | {"shape": vars(held.trainer.shape) | {"num_hidden_layers": 6}}
    with pytest.raises(DataError, match=r"of a model with num_hidden_layers = 6, and .* has 4; put the model back"):
        held.load(state)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(command, whole, tmp_path, capsys, caplog):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    shards = [out / f"checkpoints/torchtitan/step-{step}/__0_0.distcp" for step in (3, 4)]
    flip(shards[1])
    more = [*command, "--out", str(out), "--resume"]
    assert run(more) == 0
    assert f"{shards[1]} is damaged; resuming from step 3" in caplog.text
    capsys.readouterr()
    assert lines(out, "metrics") == lines(whole, "metrics")
    for shard in shards:
        flip(shard)
    assert run(more) == 2
    assert f"every checkpoint is damaged: {shards[1]} is damaged" in capsys.readouterr().err
    assert len(lines(out, "metrics")) == 4
