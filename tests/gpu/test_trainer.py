"""The trainer on one GPU; needs torchtitan and no vLLM: `pytest -m gpu tests/gpu/test_trainer.py`."""

from dataclasses import replace

import pytest
import torch
import trainers

from firstorder.backends.coldstart import SMALL
from firstorder.backends.promote import models
from firstorder.backends.promote.dry import dry_run
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.core.method.recipe import Recipe
from firstorder.core.settings.toml import build, read

pytestmark = pytest.mark.gpu
NUMERICS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, recomputed": {"dtype": "bfloat16", "activation_checkpoint": "full", "loss_chunks": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_model):
    return write_model(tmp_path_factory.mktemp("model"), replace(SMALL, num_hidden_layers=2))


@pytest.mark.parametrize("numerics", NUMERICS)
def test_replaying_its_own_routes_changes_no_bit_of_the_scores_and_other_routes_are_taken(alone, folder, numerics):
    found = alone(trainers.replayed, folder, **NUMERICS[numerics])
    assert [name for name, seen in found.items() if not seen] == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_repeats_an_update_bit_for_bit(alone, folder, dtype):
    assert alone(trainers.resumed, folder, dtype=dtype) == (True, True, True)


def test_a_compiled_model_replays_and_is_as_near_to_float32_as_a_plain_one(alone, folder):
    found = alone(trainers.compiled, folder)
    plain, compiled = found["plain"], found["compiled"]
    assert plain["routes"]
    assert compiled["routes"]
    assert 0.0 < compiled["apart"] < 1.5 * plain["apart"]
    assert 0.0 < compiled["gradient"] < float("inf")


def test_scores_and_routes_in_float32_are_those_of_the_cpu(alone, folder, monkeypatch):
    there, on_gpu, its_routes = alone(trainers.scores, folder, dtype="float32")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    here, on_cpu, routes = alone(trainers.scores, folder, dtype="float32")
    assert (there, here) == ({"cuda"}, {"cpu"})
    torch.testing.assert_close(torch.tensor(on_gpu), torch.tensor(on_cpu), rtol=0.0, atol=1e-4)
    assert torch.equal(*(torch.tensor(each).sort(-1).values for each in (its_routes, routes)))  # a choice has no order


def test_a_micro_batch_that_does_not_fit_is_named_with_what_to_lower(alone, folder):
    said = alone(trainers.out_of_memory, folder)
    assert said.startswith("a micro-batch does not fit into memory (CUDA out of memory.")
    assert "lower torchtitan.microbatch_rows or pack_length" in said


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_the_dry_run_expects_what_an_update_allocates(alone, recompute):
    shape = replace(models.shape_of(), num_hidden_layers=2)
    recipe = build(Recipe, read("qwen3-30b-a3b-r3-n2"))
    titan = Torchtitan(activation_checkpoint=recompute, pack_length=32_768, microbatch_rows=1, loss_chunks=16)
    estimate = dry_run(shape, titan, recipe, 1).peak
    allocated = alone(trainers.peak, shape, titan, recipe)
    assert abs(estimate / allocated - 1.0) < 0.01, (estimate, allocated)
