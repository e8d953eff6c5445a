"""Pairs of real engines measured one after another in a process, which may die."""

import multiprocessing

import pytest

from firstorder.backends.parity import Point
from firstorder.backends.probe import measure_all
from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.vllm.config import Vllm
from firstorder.core.errors import ConfigError, WorkerError


@pytest.fixture(scope="module")
def found(tmp_path_factory, shape, write_model):
    """In float32, twice; in fp8; of a length that the model cannot have; and where the process is killed."""
    titan = Torchtitan(model=str(write_model(tmp_path_factory.mktemp("model"), shape)), dtype="float32")
    common = {"max_prompt": 40, "kv_cache_mib": 16}
    small = {"max_sequences": 4, "max_batched_tokens": 64, "prefix_caching": False}
    settings = [
        Vllm(dtype="float32", **common),
        Vllm(dtype="float32", **common, **small),
        Vllm(quantization="fp8_per_tensor", **common),
        Vllm(**common | {"max_prompt": 400}),
        Vllm(**common),
    ]
    long = titan.model_copy(update={"pack_length": 512})
    points = [Point(titan=long, vllm=each, task=TaskSettings(kind="sums"), prompts=4, responses=4) for each in settings]
    measured = measure_all(points)
    results = [next(measured) for _ in range(4)]
    (child,) = multiprocessing.active_children()
    child.kill()
    results.append(next(measured))
    measured.close()
    assert multiprocessing.active_children() == []
    return results


def test_in_float32_the_engines_are_one(found):
    for each in found[:2]:
        assert each["routes"]["route/flip_rate"] == 0.0
        assert each["live"]["mean_abs_d"] == pytest.approx(each["R3"]["mean_abs_d"])
        assert each["live"]["mean_abs_d"] < 1e-5
        assert each["live"]["one_minus_ess"] < 1e-8
        assert not each["emulated"]
        assert each["tokens_per_second"] > 0


def test_the_size_of_batches_changes_no_response(found):
    whole, small = ({k: v for k, v in each.items() if k != "tokens_per_second"} for each in found[:2])
    assert whole["tokens"] == small["tokens"]
    assert whole["reward"] == small["reward"]
    assert whole["live"] == pytest.approx(small["live"], rel=1e-3, abs=1e-6)


def test_fp8_moves_routes_and_replay_takes_them_back(found):
    low = found[2]
    assert low["emulated"]
    assert 0.0 < low["routes"]["route/flip_rate"] < 0.5
    assert low["R3"]["mean_abs_d"] < low["live"]["mean_abs_d"]
    assert 1e-3 < low["live"]["mean_abs_d"] < 0.5


def test_a_point_that_vllm_refuses_is_an_error_of_its_own(found):
    assert isinstance(found[3], ConfigError)
    assert "vLLM does not start with these [vllm] settings" in str(found[3])
    assert "\n" not in str(found[3])


def test_a_process_that_was_killed_is_named(found):
    assert isinstance(found[4], WorkerError)
    assert "the engines' process ended with code -9" in str(found[4])
