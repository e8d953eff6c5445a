"""Rollouts on a GPU: vLLM's own fp8 kernels, batch invariance, weights over NCCL, throughput. `make test-gpu`."""

import os
import subprocess
import sys
import time

import pytest
import tasks
import torch
from servers import answers, free_port, kill

from firstorder.backends.coldstart import SMALL
from firstorder.backends.parity import Point
from firstorder.backends.probe import measure_all
from firstorder.backends.tasks import sums
from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.vllm.client import ask
from firstorder.backends.vllm.config import Vllm
from firstorder.backends.vllm.serve import ENVIRONMENT, flags
from firstorder.backends.vllm.served import ServedEngine

pytestmark = pytest.mark.gpu
SCHEMES = ("fp8_per_tensor", "fp8_per_block")
FP8 = "torch.float8_e4m3fn"


@pytest.fixture(scope="module")
def other(tmp_path_factory, write_model):
    return write_model(tmp_path_factory.mktemp("other"), SMALL, seed=5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_matrices_are_fp8_and_routers_are_not(alone, folder, scheme):
    emulated, found = alone(tasks.weight_dtypes, folder, scheme)
    assert not emulated
    for layer in range(SMALL.num_hidden_layers):
        place = f"model.layers.{layer}"
        assert found[f"{place}.self_attn.qkv_proj.weight"] == FP8
        assert found[f"{place}.mlp.gate.weight"] == "torch.bfloat16"
        assert {found[name] for name in found if name.startswith(place) and name.endswith("w13_weight")} == {FP8}


@pytest.mark.parametrize("scheme", ["none", *SCHEMES])
def test_synchronised_weights_are_those_of_a_fresh_engine(alone, folder, other, scheme):
    before, after, fresh = alone(tasks.synchronised, folder, other, scheme)
    assert after != before
    assert after == fresh


@pytest.mark.parametrize("scheme", SCHEMES)
def test_fp8_rollouts_are_as_near_as_the_probe_demands(folder, scheme):
    titan = Torchtitan(model=str(folder), dtype="float32")
    settings = Vllm(quantization=scheme)
    (found,) = measure_all([Point(titan=titan, vllm=settings, task=TaskSettings(kind="sums"), prompts=32, responses=4)])
    assert not isinstance(found, Exception), found
    assert not found["emulated"]
    assert 0.0 < found["routes"]["route/flip_rate"] < 0.5
    assert 0.0 < found["live"]["mean_abs_d"] < settings.limit


@pytest.mark.parametrize("scheme", ["none", *SCHEMES])
def test_a_response_does_not_depend_on_its_batch(alone, folder, scheme):
    together, one_by_one = alone(tasks.in_batches, folder, scheme)
    assert together == one_by_one


@pytest.mark.parametrize("scheme", ["none", *SCHEMES])
def test_throughput(alone, folder, scheme, capsys):
    tokens, seconds = alone(tasks.throughput, folder, scheme)
    with capsys.disabled():
        print(f"\n{scheme}: {tokens / seconds:,.0f} response tokens/s on {torch.cuda.get_device_name()}")
    assert tokens >= 1024
    assert seconds < 60


def test_weights_arrive_over_nccl_from_another_process(alone, folder, other, tmp_path, monkeypatch):
    assert torch.cuda.device_count() >= 2, "this test needs two GPUs: one trains, one samples"
    settings, port = Vllm(max_prompt=40, kv_cache_mib=256), free_port()
    address = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "firstorder.backends.vllm.server",
        *flags(str(folder), "127.0.0.1", port, settings),
    ]
    command += ["--weight-transfer-config", '{"backend": "nccl"}']
    with (tmp_path / "log").open("w+") as log:
        there = os.environ | ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=there, start_new_session=True)
        try:
            deadline = time.monotonic() + 300
            while not answers(address):
                assert process.poll() is None, (tmp_path / "log").read_text()[-500:]
                assert time.monotonic() < deadline
                time.sleep(0.5)
            engine = ServedEngine(settings.model_copy(update={"servers": (address,)}), str(folder), [sums.END])
            before = first_tokens(engine)
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
            alone(tasks.send_by_nccl, address, free_port(), other)
            ask(address, "/reset_prefix_cache", settings.timeout, {})
            sent = first_tokens(engine)
            engine.close()
        finally:
            kill(process)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    expected = alone(tasks.sampled_first, other)
    assert (sent - before).abs().max() > 0.1
    torch.testing.assert_close(sent, expected, rtol=0.0, atol=0.05)


def first_tokens(engine):
    """log μ of the first token of each response; its distribution depends on the prompt alone."""
    return torch.tensor([logp[0] for _, logp, _ in tasks.sample(engine)])
