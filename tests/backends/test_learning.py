"""The whole way in minutes: a cold start, then reinforcement learning on vLLM rollouts with R3 raises the reward."""

import json

import pytest

from firstorder.backends.coldstart import coldstart
from firstorder.cli.main import run

STEPS = 40
SETTINGS = [
    *("task.kind=sums", "torchtitan.dtype=float32", "torchtitan.pack_length=128", "torchtitan.microbatch_rows=64"),
    *(f"schedule.steps={STEPS}", "schedule.prompts=32", "schedule.group_size=8", "optimizer.lr=1.5e-4"),
    *("torchtitan.evaluate_every=1000", "torchtitan.evaluate_prompts=512", "torchtitan.checkpoint_every=1000"),
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


def risen(before, after, responses):
    """By how many standard errors of two shares, of as many responses each, the second is larger."""
    share = (before + after) / 2
    return (after - before) / (2 * share * (1 - share) / responses) ** 0.5


def test_reinforcement_learning_raises_the_reward(rewards):
    during, held_out = rewards
    early, late = sum(during[:4]) / 4, sum(during[-4:]) / 4  # of 1024 responses each
    assert risen(early, late, 1024) > 4.0
    assert risen(early, held_out, 512) > 3.0
