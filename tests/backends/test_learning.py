"""The whole way in minutes: a cold start, then reinforcement learning on vLLM rollouts with R3 raises the reward."""

import json

import pytest

from firstorder.backends.coldstart import coldstart
from firstorder.cli.main import run

STEPS = 24
SETTINGS = [
    *("task.kind=sums", "torchtitan.dtype=float32", "torchtitan.pack_length=128", "torchtitan.microbatch_rows=64"),
    *(f"schedule.steps={STEPS}", "schedule.prompts=32", "schedule.group_size=8", "optimizer.lr=3e-4"),
    *("torchtitan.evaluate_every=1000", "torchtitan.evaluate_prompts=1024", "torchtitan.checkpoint_every=1000"),
]


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    """Mean reward of each step's rollouts, and of held-out prompts after the last."""
    base = tmp_path_factory.mktemp("learning")
    coldstart("steps", base / "small")
    words = [word for each in [*SETTINGS, f"torchtitan.model={base / 'small'}"] for word in ("--set", each)]
    assert run(["train", "minirl-r3-n2", "--backend", "torchtitan", *words, "--out", str(base / "run")]) == 0
    steps = [json.loads(line) for line in (base / "run/metrics.jsonl").read_text().splitlines()]
    return [step["reward"] for step in steps], steps[-1]["eval/reward"]


def test_reinforcement_learning_raises_the_reward(rewards):
    during, held_out = rewards
    early, late = sum(during[:4]) / 4, sum(during[-4:]) / 4  # of 1024 responses each
    assert late - early > 5 * (2 * 0.25 / 1024) ** 0.5  # five standard errors at their largest
    assert held_out - early > 5 * (2 * 0.25 / 1024) ** 0.5
