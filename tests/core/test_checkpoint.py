"""Checkpoints: what is damaged is named, never loaded, and an older whole one is gone back to."""

import os
import shutil
import subprocess

import pytest
import torch

from firstorder.core.errors import DataError
from firstorder.core.runs import checkpoint
from firstorder.core.runs.checkpoint import DamagedError, check_like, digest, newest, read, write

STATE = {"weights": {"up": torch.arange(400.0, dtype=torch.float64)}, "steps": 3}


@pytest.fixture
def folder(tmp_path):
    """Two checkpoints, each with a part that the backend wrote."""
    for step in (10, 20):
        part = tmp_path / f"shards/step-{step}/__0_0.distcp"
        part.parent.mkdir(parents=True)
        part.write_bytes(bytes(range(256)) * step)
        write(tmp_path, step, STATE, {str(part.relative_to(tmp_path)): digest(part)})
    return tmp_path


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)


def test_a_checkpoint_is_what_was_written(folder):
    found = newest(folder)
    assert found.step == 20
    assert torch.equal(found.state["weights"]["up"], STATE["weights"]["up"])
    done = subprocess.run(["sha256sum", "-c", "step-0000020.sha256"], cwd=folder, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["step-0000020.pt: OK", "shards/step-20/__0_0.distcp: OK"]


@pytest.mark.parametrize("share", [i / 30 for i in range(30)])
def test_one_bit_anywhere_is_seen_and_the_older_one_is_taken(share, folder, caplog):
    newer = folder / "step-0000020.pt"
    flip(newer, int(share * newer.stat().st_size))
    assert newest(folder).step == 10
    assert caplog.messages == [f"{newer} is damaged; resuming from step 10, with step-0000020.pt set aside"]
    assert not newer.exists()
    assert newest(folder).step == 10
    write(folder, 20, STATE, {})
    assert newest(folder).step == 20


DAMAGED = {
    "a part": (lambda f: flip(f / "shards/step-20/__0_0.distcp", 77), "__0_0.distcp is damaged"),
    "a part lost": (lambda f: (f / "shards/step-20/__0_0.distcp").unlink(), "__0_0.distcp cannot be read"),
    "a part cut": (lambda f: os.truncate(f / "shards/step-20/__0_0.distcp", 99), "__0_0.distcp is damaged"),
    "a part that is a folder": (
        lambda f: (shutil.rmtree(f / "shards/step-20"), (f / "shards/step-20/__0_0.distcp").mkdir(parents=True)),
        "__0_0.distcp cannot be read",
    ),
    "cut": (lambda f: os.truncate(f / "step-0000020.pt", 100), "step-0000020.pt is damaged"),
    "emptied": (lambda f: os.truncate(f / "step-0000020.pt", 0), "step-0000020.pt is damaged"),
    "no sums": (lambda f: (f / "step-0000020.sha256").unlink(), "the checksums of step-0000020.pt, cannot be read"),
    "sums cut": (lambda f: os.truncate(f / "step-0000020.sha256", 20), "the checksums of step-0000020.pt, is damaged"),
    "sums empty": (lambda f: os.truncate(f / "step-0000020.sha256", 0), "the checksums of step-0000020.pt, is damaged"),
    "sums binary": (lambda f: (f / "step-0000020.sha256").write_bytes(b"\xff\x00"), "cannot be read"),
    "sums of another": (
        lambda f: shutil.copy(f / "step-0000010.sha256", f / "step-0000020.sha256"),
        "the checksums of step-0000020.pt, is damaged",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_of_every_kind_is_named(name, folder, caplog):
    spoil, reason = DAMAGED[name]
    spoil(folder)
    with pytest.raises(DamagedError, match=reason):
        read(folder / "step-0000020.pt")
    assert newest(folder).step == 10
    assert len(caplog.messages) == 1
    assert reason in caplog.messages[0]


SENSELESS = {
    "a list": ([1, 2], "does not hold the step that its name says"),
    "no step": ({"state": STATE}, "does not hold the step that its name says"),
    "a text for a step": ({"step": "20", "state": STATE}, "does not hold the step that its name says"),
    "another step": ({"step": 10, "state": STATE}, "does not hold the step that its name says"),
    "no state": ({"step": 20}, "holds no state to resume from"),
    "an empty state": ({"step": 20, "state": {}}, "holds no state to resume from"),
    "a state that is a tensor": ({"step": 20, "state": torch.ones(2)}, "holds no state to resume from"),
    "a program": ({"step": 20, "state": {"run": os.system}}, "does not load: "),
}


@pytest.mark.parametrize("name", SENSELESS)
def test_what_is_no_checkpoint_is_one_line_even_with_its_own_checksum(name, folder):
    content, reason = SENSELESS[name]
    path = folder / "step-0000020.pt"
    torch.save(content, path)
    path.with_suffix(".sha256").write_text(f"{digest(path)}  {path.name}\n")
    with pytest.raises(DamagedError, match=reason) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_where_none_is_whole_nothing_is_touched_and_each_is_named(folder):
    for step in (10, 20):
        flip(folder / f"step-{step:07d}.pt", 500)
    before = {path: path.read_bytes() for path in folder.glob("step-*")}
    with pytest.raises(
        DataError, match=r"every checkpoint is damaged: .*20.pt is damaged; .*10.pt is damaged; restore one"
    ):
        newest(folder)
    assert {path: path.read_bytes() for path in folder.glob("step-*")} == before


def test_the_newest_two_are_kept_with_their_sums_and_a_full_disk_leaves_both(folder, monkeypatch):
    write(folder, 30, STATE, {})
    kept = [f"step-00000{step}.{kind}" for step in (20, 30) for kind in ("pt", "sha256")]
    assert sorted(path.name for path in folder.glob("step-*")) == kept

    def full(*_):
        raise OSError(28, "No space left on device")

    replace = os.replace
    monkeypatch.setattr(checkpoint.os, "replace", lambda a, b: full() if b.suffix == ".pt" else replace(a, b))
    with pytest.raises(OSError, match="No space left"):
        write(folder, 40, STATE, {})
    assert sorted(path.name for path in folder.glob("step-*")) == kept


UNLIKE = {
    "a name missing": ({"weights": {}, "steps": 3}, r"state.weights.up is missing"),
    "a name too many": (STATE | {"more": 1}, r"state.more is unknown"),
    "another shape": ({"weights": {"up": torch.ones(3, dtype=torch.float64)}, "steps": 3}, r"\[3\] where \[400\]"),
    "another dtype": ({"weights": {"up": torch.ones(400)}, "steps": 3}, "torch.float32 where torch.float64"),
    "another kind": (STATE | {"steps": "3"}, "state.steps is a str where a int is wanted"),
    "a table for a tensor": ({"weights": {"up": {}}, "steps": 3}, "state.weights.up is a dict where a Tensor"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_a_state_of_another_run_is_refused_by_its_first_part(name):
    check_like(STATE, STATE)
    found, reason = UNLIKE[name]
    with pytest.raises(DataError, match=reason):
        check_like(found, STATE)
