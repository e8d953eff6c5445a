"""Fixtures of the engine tests: small models, and the warnings of the engines that are not ours to mend."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from firstorder.backends.folder import Shape

FOREIGN = (
    "ignore:DTensor random operators may not have complete support:UserWarning",
    "ignore:In CPU autocast, but the target dtype is not supported:UserWarning",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::ResourceWarning",
)

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
    max_position_embeddings=64,
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
