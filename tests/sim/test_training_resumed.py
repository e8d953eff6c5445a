"""Each run as if never interrupted: kills, signals, damaged checkpoints, folders that are taken."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from training_runs import SIM, logs_of, recipe, train_command

from firstorder.cli.main import run
from firstorder.core.errors import ConfigError, DataError, NotFiniteError
from firstorder.core.training.arms import Arm
from firstorder.core.training.interrupt import Interrupted
from firstorder.sim.training.backend import SimBackend
from firstorder.sim.training.session import SimRun


def test_a_run_killed_at_any_moment_goes_on_bit_for_bit(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(train_command(whole)) == 0
    script = "import sys; from firstorder.cli.main import run; sys.exit(run(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", script, *train_command(killed)], stderr=subprocess.DEVNULL)
    wait_for(killed / "checkpoints" / "step-0000006.pt")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len((killed / "metrics.jsonl").read_text().splitlines()) < 30
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 29, "half')
    assert run(train_command(killed, "--resume")) == 0
    assert logs_of(killed) == logs_of(whole)
    last = [torch.load(f / "checkpoints" / "step-0000030.pt")["state"]["weights"] for f in (killed, whole)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_after_a_step_that_is_saved(number, code, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    rare = ["--set", "sim.checkpoint_every=1000", "--set", "schedule.steps=2000", "--set", "sim.evaluate_every=0"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from firstorder.cli.main import main; main()", *train_command(stopped, *rare)],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(stopped / "metrics.jsonl")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    done = len((stopped / "metrics.jsonl").read_text().splitlines())
    assert 0 < done < 1000  # so that no checkpoint was due
    assert [file.name for file in (stopped / "checkpoints").glob("*.pt")] == [f"step-{done:07d}.pt"]
    assert f"{number.name} after step {done - 1}, saved; go on with `firstorder resume " in err
    assert "Traceback" not in err
    fewer = ["--set", f"schedule.steps={done + 2}"]
    config = stopped / "config.toml"
    config.write_text(config.read_text().replace("steps = 2000", f"steps = {done + 2}"))  # so that the test is short
    assert run(train_command(stopped, *rare, *fewer, "--resume")) == 0
    assert run(train_command(whole, *rare, *fewer)) == 0
    assert logs_of(stopped) == logs_of(whole)


def wait_for(path):
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear")


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [flipped, lambda b: b[:1000], lambda b: b"", lambda b: b"not a checkpoint" * 50])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(damage, tmp_path, caplog):
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    assert run(train_command(whole)) == run(train_command(damaged)) == 0
    newest = damaged / "checkpoints" / "step-0000030.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    assert run(train_command(damaged, "--resume")) == 0
    assert "step-0000030.pt is damaged; resuming from step 2" in caplog.text
    assert logs_of(damaged) == logs_of(whole)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    assert run(train_command(tmp_path / "a")) == 0
    assert len(os.listdir(tmp_path / "a" / "checkpoints")) == 4  # each with its checksums


def test_a_run_at_work_is_not_resumed_beside_itself(tmp_path):
    made = SimRun(recipe=recipe("minirl"), sim=SIM)
    session = made.prepare(tmp_path / "run")
    with pytest.raises(ConfigError, match=f"is in use by process {os.getpid()} on"):
        made.prepare(tmp_path / "run", resume=True)
    session.run()
    made.prepare(tmp_path / "run", resume=True).run()


def test_a_start_that_fails_leaves_no_new_folder_and_keeps_an_old_one(tmp_path, monkeypatch):
    made = SimRun(recipe=recipe("minirl", "schedule.steps=1"), sim=SIM)
    made.prepare(tmp_path / "old").run()
    kept = sorted(path.name for path in (tmp_path / "old").iterdir())
    monkeypatch.setattr(SimBackend, "__init__", lambda *given: (_ for _ in ()).throw(NotFiniteError("cold")))
    for name, resume in (("new", False), ("old", True)):
        with pytest.raises(NotFiniteError, match="cold"):
            made.prepare(tmp_path / name, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == kept


class SecondRank:
    """One of two ranks, whose first was asked to stop."""

    def is_rank0(self):
        return False

    def broadcast_from_rank0(self, make):
        return None

    def all_reduce_max(self, number):
        return max(number, signal.SIGTERM)


def test_a_rank_that_was_not_asked_stops_with_the_others_and_writes_nothing(tmp_path):
    session = SimRun(recipe=recipe("minirl"), sim=SIM).prepare(tmp_path / "run")
    ended = []

    @contextmanager
    def around():
        try:
            yield
        except Interrupted as stopped:
            ended.append(stopped.step)
            raise

    with pytest.raises(Interrupted, match="stopped by SIGTERM; step 1 follows"):
        replace(session, ranks=SecondRank(), around=around).run()
    assert ended == [1]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_checkpoint_of_other_members_is_refused():
    one, two = (SimBackend(SIM, (Arm(recipe=recipe("minirl"), members=m),), torch.arange(m)) for m in (1, 2))
    with pytest.raises(DataError, match=r"does not fit this run, state\.weights\.\w+ is \[2, .* where \[1, "):
        one.load(two.state())


def test_another_configuration_is_not_resumed(tmp_path, capsys):
    assert run(train_command(tmp_path / "a")) == 0
    before = logs_of(tmp_path / "a")
    assert run(train_command(tmp_path / "a", "--resume", "--set", "clip.high=0.5")) == 2
    assert "was run with clip.high = 0.27, got 0.5" in capsys.readouterr().err
    assert run(train_command(tmp_path / "a")) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert run(train_command(tmp_path / "nothing", "--resume")) == 2
    assert "holds no run to resume" in capsys.readouterr().err
    assert logs_of(tmp_path / "a") == before


@pytest.mark.parametrize("text", ["[sim\n", "\x00", b"\xff\xfe"])
def test_a_configuration_that_cannot_be_read_is_not_resumed(text, tmp_path, capsys):
    assert run(train_command(tmp_path / "a", "--set", "schedule.steps=2")) == 0
    (tmp_path / "a" / "config.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    before = logs_of(tmp_path / "a")
    assert run(train_command(tmp_path / "a", "--resume", "--set", "schedule.steps=2")) == 2
    assert "config.toml is not valid TOML" in capsys.readouterr().err.splitlines()[-1]
    assert logs_of(tmp_path / "a") == before
