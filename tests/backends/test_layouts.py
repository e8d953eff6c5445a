"""FSDP2, tensor and expert parallelism give what one rank gives: scores, routes, receipts, gradients and weights."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import layouts
import pytest
import torch
from reference import Reference
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("layouts.py")


@pytest.fixture(scope="module")
def sizes(shape):
    return replace(shape, num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sizes, write_model):
    return write_model(tmp_path_factory.mktemp("model"), sizes)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, sizes, write_model):
    """The same weights in several files and an index."""
    return write_model(tmp_path_factory.mktemp("sharded"), sizes, limit=500_000)


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    return {name: layouts.one(folder, out / name, *words) for name, words in layouts.ALONE.items()}


@pytest.fixture(scope="module")
def two(sharded, tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(sharded), str(out)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out / "found.pt")


def test_sharded_weights_are_those_of_one_file_for_transformers_too(folder, sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    files = sorted(file.name for file in sharded.glob("*.safetensors"))
    assert files == [f"model-0000{n}-of-0000{len(files)}.safetensors" for n in range(1, len(files) + 1)]
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in load_file(folder / "model.safetensors").values())
    one, several = (Reference(path).model.state_dict() for path in (folder, sharded))
    assert all(torch.equal(w, several[name]) for name, w in one.items())


@pytest.mark.parametrize("name", layouts.TWO)
def test_two_ranks_are_one(name, alone, two, same):
    found, one = two[name], alone[layouts.TWO[name][0]]
    assert torch.equal(found["routes"], one["routes"])
    assert found["goes_on"][0] == found["goes_on"][1]  # from its checkpoint
    assert found["receipts"] == pytest.approx(one["receipts"], abs=1e-9)
    assert found["rows"] == one["rows"]  # every row once, whichever rank held it
    assert sum(found["rows"]["replayed"] + found["rows"]["replaced"]) == (0 if "gspo" in layouts.TWO[name] else 4 * 131)
    assert (sum(found["rows"]["replaced"]) > 0) == (layouts.CONDITION in layouts.TWO[name])
    routers = [g for parameter, g in found["gradients"].items() if "router.gate" in parameter]
    assert all((g.abs().max() == 0) == ("total-recall" in layouts.TWO[name]) for g in routers)
    assert found["loss"] == pytest.approx(one["loss"], rel=1e-4, abs=1e-6)
    assert found["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
    assert found["weights"] == pytest.approx(one["weights"], rel=1e-4)
    for quantity in ("entropy", "outside", "margin", "gates"):
        same(found[quantity], one[quantity])
    assert bool(one["outside"].any()) == ("gspo" in layouts.TWO[name])
    assert found["gradients"].keys() == one["gradients"].keys()
    for parameter, gradient in one["gradients"].items():
        same(found["gradients"][parameter], gradient, 1e-4)
    torch.testing.assert_close(found["logp"], one["logp"], rtol=1e-3, atol=1e-3)
