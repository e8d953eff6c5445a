"""Things timed in turns in one process, so that what disturbs one disturbs all; and the model they share."""

import os
import runpy
import statistics
import time

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


@pytest.fixture
def in_turns(request, facts):
    """Calls functions in turns and states the median of each one's time over the first's, with its quartiles.

    CPU seconds of this process, which runs on one thread: another process on the machine does not count. Without
    --benchmark-enable every function is called once.
    """
    enabled = request.config.getoption("benchmark_enable") or request.config.getoption("benchmark_only")

    def measure(rounds=15, **functions):
        for call in functions.values():
            call()
        if not enabled:
            return
        spent = {name: [] for name in functions}
        for _ in range(rounds):
            for name, call in functions.items():
                started = time.process_time()
                call()
                spent[name].append(time.process_time() - started)
        first, *others = spent
        for name in others:
            ratios = [a / b for a, b in zip(spent[name], spent[first], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            seconds = " and ".join(f"{statistics.median(spent[x]):.3f} s" for x in (name, first))
            facts[f"{name} / {first}".replace("_", " ")] = f"{middle:.3f} [{low:.3f}, {high:.3f}] ({seconds})"

    return measure
