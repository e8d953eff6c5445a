"""A disk that fills up while a run is being recorded: a real limit on the size of files, set by the kernel."""

import os
import resource
import shutil

import pytest
import torch

from firstorder.cli.main import run
from firstorder.core.runs.folder import RunFolder
from firstorder.core.runs.logs import LOGS

SETTINGS = [
    *("schedule.steps=12", "schedule.prompts=4", "schedule.group_size=4", "optimizer.lr=0.01"),
    *("sim.checkpoint_every=3", "sim.vocab=3", "sim.horizon=2", "sim.prompts=2", "sim.evaluate_every=4"),
]


def command(out, *more):
    settings = [word for each in SETTINGS for word in ("--set", each)]
    return ["train", "minirl-r3-n2", *settings, "--out", str(out), *more]


@pytest.fixture
def filled(monkeypatch, capsys):
    """Runs a command that must stop because the disk fills up; its one line of complaint.

    From `step` on no file can grow beyond the log by more than `room` bytes, without a step no file beyond `room`: a
    write is refused once it has filled the file up to there, as on a full disk.
    """

    def stopped(out, *more, step=None, room):
        append, before = RunFolder.append, resource.getrlimit(resource.RLIMIT_FSIZE)

        def limit(size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

        def limited(self, log):
            if log.step == step:
                limit(os.path.getsize(self.path / "metrics.jsonl") + room)
            append(self, log)

        monkeypatch.setattr(RunFolder, "append", limited)
        capsys.readouterr()
        try:
            if step is None:
                limit(room)
            code = run(command(out, *more))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            monkeypatch.setattr(RunFolder, "append", append)
        written, said = capsys.readouterr()
        assert (code, written) == (2, "")
        # progress, which a slow machine tells of, is no complaint
        told = [line for line in said.splitlines() if line.startswith("firstorder: ")]
        complaints = [line for line in told if not line.startswith("firstorder: train: ")]
        assert len(complaints) == 1
        assert "Traceback" not in said
        return complaints[0]

    return stopped


def logs(folder):
    return [(folder / f"{name}.jsonl").read_bytes() for name in LOGS]


def steps(folder):
    return sorted(int(path.stem.removeprefix("step-")) for path in (folder / "checkpoints").glob("*.pt"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("disk") / "whole"
    assert run(command(out)) == 0
    return out


def test_a_disk_that_fills_up_in_the_middle_of_a_line_loses_nothing(whole, filled, tmp_path):
    out = tmp_path / "run"
    said = filled(out, step=7, room=300)
    assert said == f"firstorder: cannot write to {out}: File too large; free some space and go on with --resume"
    text = (out / "metrics.jsonl").read_bytes()
    assert text[:-300] == b"".join(logs(whole)[0].splitlines(keepends=True)[:7])
    assert not text.endswith(b"\n")
    assert steps(out) == [3, 6]
    newest = torch.load(out / "checkpoints" / "step-0000006.pt", weights_only=True)
    assert newest["step"] == 6
    # still full: refused again, and nothing is lost by trying
    said = filled(out, "--resume", step=7, room=300)
    assert "File too large; free some space and go on with --resume" in said
    assert steps(out) == [3, 6]
    assert run(command(out, "--resume")) == 0
    assert logs(out) == logs(whole)


def test_a_disk_too_full_for_a_checkpoint_keeps_the_one_before(whole, filled, tmp_path):
    out = tmp_path / "run"
    said = filled(out, step=7, room=20_000)
    assert said == f"firstorder: cannot write to {out}: File too large; free some space and go on with --resume"
    assert os.path.getsize(whole / "checkpoints" / "step-0000009.pt") > os.path.getsize(out / "metrics.jsonl") + 20_000
    assert sorted(os.listdir(out / "checkpoints")) == [
        f"step-{step:07d}.{kind}" for step in (3, 6) for kind in ("pt", "sha256")
    ]
    assert len((out / "metrics.jsonl").read_bytes().splitlines()) == 9
    assert run(command(out, "--resume")) == 0
    assert logs(out) == logs(whole)
    ends = [torch.load(f / "checkpoints" / "step-0000012.pt")["state"]["weights"] for f in (out, whole)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_disk_that_is_full_at_the_start_leaves_nothing_in_the_way(whole, filled, tmp_path):
    out = tmp_path / "run"
    assert "config.toml: File too large; free some space" in filled(out, room=0)
    assert list(out.iterdir()) == []
    assert run(command(out)) == 0
    assert logs(out) == logs(whole)


def test_a_log_that_cannot_be_cut_is_left_as_it_is(whole, filled, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "checkpoints" / "step-0000012.pt").unlink()
    for name in LOGS:  # longer than what is written before them
        padded = [line + b" " * 4000 for line in (out / f"{name}.jsonl").read_bytes().splitlines()]
        (out / f"{name}.jsonl").write_bytes(b"\n".join([*padded, b""]))
    before = logs(out)
    room = os.path.getsize(out / "quantities.json") + 1
    assert "metrics.jsonl: File too large; free some space" in filled(out, "--resume", room=room)
    assert logs(out) == before
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert run(command(out, "--resume")) == 0
    assert [log.replace(b" " * 4000, b"") for log in logs(out)] == logs(whole)


@pytest.mark.parametrize("tail", [b'{"step": 11, "kl": 0.0', b"\x00\x00\x00\n", b"\xff\xfe\n", b"null\n", b"{}\n"])
def test_a_last_line_that_is_not_whole_is_dropped(tail, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for name in LOGS:
        with (out / f"{name}.jsonl").open("ab") as file:
            file.write(tail)
    assert run(command(out, "--resume")) == 0
    assert logs(out) == logs(whole)


def test_a_damaged_line_costs_itself_alone(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    kept = (out / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (out / "metrics.jsonl").write_bytes(b"".join([*kept[:4], kept[4][:50] + b"\n", *kept[5:]]))
    assert run(command(out, "--resume")) == 0
    assert logs(out) == [b"".join(kept[:4] + kept[5:]), logs(whole)[1]]
