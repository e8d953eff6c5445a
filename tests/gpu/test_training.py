"""The trainer on a GPU: what it computes there is what it computes here, and rollouts follow it. `make test-gpu`."""

import pytest
import tasks

pytestmark = pytest.mark.gpu


def test_replayed_scores_are_the_live_ones_and_a_step_moves_the_weights(alone, folder):
    live, replayed, norm, moved = alone(tasks.trained, folder)
    assert replayed == live
    assert norm > 0.0
    assert moved


def test_a_whole_run_trains_and_passes_its_probe(alone, folder, tmp_path):
    assert alone(tasks.run_of_two_steps, folder, str(tmp_path / "run")) == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
