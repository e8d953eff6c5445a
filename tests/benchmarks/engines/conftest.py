"""The model that the benchmarks of the engines share, and one thread for all of them."""

import os
import runpy

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LOCAL_RANK", "0")  # torchtitan's own trainer asks for it

import sys
from pathlib import Path

import pytest
import torch

from firstorder.backends.coldstart import initial_weights
from firstorder.backends.folder import Shape, write_config, write_weights
from firstorder.backends.tasks import sums

sys.path.insert(0, str(Path(__file__).parent))  # stock.py

FOREIGN = runpy.run_path(str(Path(__file__).parents[2] / "foreign.py"))["FOREIGN"]

SHAPE = Shape(
    vocab_size=4096,
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    moe_intermediate_size=128,
    num_experts=32,
    num_experts_per_tok=4,
    rope_theta=10000.0,
    max_position_embeddings=512,
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
def folder(tmp_path_factory):
    """A model of 15 million parameters."""
    made = tmp_path_factory.mktemp("model")
    write_config(made, SHAPE, sums.END, sums.PAD)
    write_weights(made, initial_weights(SHAPE, 0).items())
    sums.write_tokenizer(made)
    return made
