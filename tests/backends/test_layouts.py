"""FSDP2 and expert parallelism give what one rank gives: scores, routes, receipts, losses and weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("layouts.py")


def launch(ranks, folder, out, recipe, *changes):
    out.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(SCRIPT)]
    done = subprocess.run(
        [*command, str(folder), str(out), recipe, *changes],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "found.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shape, write_model):
    return write_model(tmp_path_factory.mktemp("model"), shape)


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    return {name: launch(1, folder, out / name, name) for name in ("minirl-r3", "gspo")}


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("minirl-r3", []),
        ("minirl-r3", ["expert=2", "activation_checkpoint=full"]),
        ("gspo", ["expert=2"]),
    ],
    ids=["fsdp", "expert-parallel", "sequence-scope"],
)
def test_two_ranks_are_one(recipe, changes, alone, folder, tmp_path):
    found, one = launch(2, folder, tmp_path / "out", recipe, *changes), alone[recipe]
    assert found["routes"] == one["routes"]
    assert found["receipts"] == pytest.approx(one["receipts"], abs=1e-9)
    assert found["loss"] == pytest.approx(one["loss"], rel=1e-4, abs=1e-6)
    assert found["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
    assert found["weights"] == pytest.approx(one["weights"], rel=1e-4)
    torch.testing.assert_close(torch.tensor(found["logp"]), torch.tensor(one["logp"]), rtol=1e-3, atol=1e-3)
