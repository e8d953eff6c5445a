"""Fixtures of the engine tests: small models, and the warnings of the engines that are not ours to mend."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import runpy
import sys
from pathlib import Path

import pytest
import torch

from firstorder.backends.coldstart import initial_weights
from firstorder.backends.folder import SHARD, Shape, write_config, write_weights
from firstorder.backends.tasks import sums
from firstorder.cli.main import run

sys.path.insert(0, str(Path(__file__).parent))  # reference.py, small_runs.py

FOREIGN = runpy.run_path(str(Path(__file__).parents[1] / "foreign.py"))["FOREIGN"]

SHAPE = Shape(
    vocab_size=32,
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    moe_intermediate_size=64,
    num_experts=8,
    num_experts_per_tok=2,
    rope_theta=10000.0,
    max_position_embeddings=256,
)


def pytest_configure(config):
    for line in FOREIGN:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shape():
    return SHAPE


@pytest.fixture(scope="session")
def write_model():
    """Writes a model folder whose routers decide and whose distributions are not flat."""

    def write(folder, shape, seed=0, moved=0.0, limit=SHARD):
        weights = initial_weights(shape, seed)
        g = torch.Generator().manual_seed(seed + 1)
        for name, w in weights.items():
            if w.ndim == 2:
                w.mul_(30.0 if "mlp.gate." in name else 8.0)
            w.add_(moved * w.std(correction=0).clamp(min=0.1) * torch.randn(w.shape, generator=g))
        write_config(folder, shape, sums.END, sums.PAD)
        write_weights(folder, weights.items(), limit)
        sums.write_tokenizer(folder)
        return folder

    return write


@pytest.fixture(scope="session")
def same():
    """Asserts that two tensors agree to a share of the largest entry."""

    def check(actual, expected, tolerance=2e-5):
        assert actual.shape == expected.shape
        apart = (actual.double() - expected.double()).abs().max()
        assert apart <= tolerance * expected.double().abs().max(), float(apart)

    return check


@pytest.fixture(scope="session")
def solver(tmp_path_factory):
    made = tmp_path_factory.mktemp("made") / "model"
    assert run(["coldstart", "steps", "--out", str(made), "--steps", "100"]) == 0  # it solves a few sums
    return made


@pytest.fixture(scope="session")
def command(solver):
    from small_runs import ENGINES, SMALL, sets

    model = sets(f"torchtitan.model={solver}")
    return ["train", "minirl-r3-n2", "--backend", "torchtitan", *model, *sets(*SMALL, *ENGINES)]


@pytest.fixture(scope="session")
def whole(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert run([*command, "--dump", "--out", str(out)]) == 0
    return out
