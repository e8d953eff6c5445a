"""Servers that say what they are, before a run samples from them."""

import threading

import pytest

from firstorder.backends.vllm.config import Vllm
from firstorder.backends.vllm.replicas import check_replicas
from firstorder.backends.vllm.served import ServedEngine
from firstorder.core.errors import ConfigError

FIRST, SECOND = "http://a:1", "http://b:2"
SETTINGS = Vllm(max_prompt=40, max_tokens=24, quantization="fp8_per_block", servers=(FIRST, SECOND))


@pytest.fixture
def said(shape):
    sizes = ("num_hidden_layers", "hidden_size", "num_experts", "num_experts_per_tok", "vocab_size")
    return {name: getattr(shape, name) for name in sizes} | {
        "max_model_len": 64,
        "dtype": "bfloat16",
        "kv_cache_dtype": "auto",
        "quantization": "firstorder_fp8_per_block",
        "batch_invariant": False,
    }


def test_servers_of_the_run_pass_and_may_take_more(said, shape):
    check_replicas({FIRST: said, SECOND: said}, SETTINGS, shape, "small")
    check_replicas({FIRST: said | {"max_model_len": 128}}, SETTINGS, shape, "small")
    on_gpus = said | {"quantization": "fp8_per_block"}
    check_replicas({FIRST: on_gpus, SECOND: on_gpus}, SETTINGS, shape, "small")


WRONG = {
    "layers": ({"num_hidden_layers": 2}, "serves another model: its num_hidden_layers = 2, and small has 4; start it"),
    "vocabulary": ({"vocab_size": 99}, "serves another model: its vocab_size = 99, and small has 32"),
    "experts": ({"num_experts": 16}, "serves another model: its num_experts = 16, and small has 8"),
    "a dense model": ({"num_experts": None}, "serves another model: its num_experts = None, and small has 8"),
    "length": ({"max_model_len": 63}, r"takes 63 tokens, fewer than vllm.max_prompt \+ vllm.max_tokens = 64"),
    "dtype": ({"dtype": "float16"}, "runs with dtype = float16, and vllm.dtype = bfloat16; start it with the same"),
    "cache": ({"kv_cache_dtype": "fp8"}, "runs with kv_cache_dtype = fp8, and vllm.kv_cache_dtype = auto"),
    "weights": ({"quantization": None}, "runs with quantization = none, and vllm.quantization = fp8_per_block"),
    "invariance": ({"batch_invariant": True}, "runs with batch_invariant = True"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_server_of_another_run_is_named(name, said, shape):
    changed, message = WRONG[name]
    with pytest.raises(ConfigError, match=f"{FIRST} {message}"):
        check_replicas({FIRST: said | changed}, SETTINGS, shape, "small")


@pytest.mark.parametrize("name", WRONG)
def test_replicas_that_differ_are_named(name, said, shape):
    changed, _ = WRONG[name]
    (key,) = changed
    with pytest.raises(ConfigError, match=f"{FIRST} and {SECOND} differ: {key} = .*; start all replicas with"):
        check_replicas({FIRST: said, SECOND: said | changed}, SETTINGS, shape, "small")


def test_every_replica_gets_as_many_responses_as_it_decodes_together():
    servers = tuple(f"http://n{i}:8001" for i in range(4))
    engine = object.__new__(ServedEngine)
    engine.settings = Vllm(servers=servers, max_sequences=3)
    engine._ready = list
    all_there = threading.Barrier(12, timeout=20)  # of 4 servers that decode 3 each

    def one(number, prompt, seed):
        all_there.wait()
        return number

    engine._one = one
    assert engine.generate([[1]] * 24, range(24)) == list(range(24))
