"""The whole way in minutes: a cold start, then reinforcement learning on vLLM rollouts with R3 raises the reward."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from firstorder.backends.coldstart import coldstart
from firstorder.cli.main import run

STEPS = 40
SETTINGS = [
    *("task.kind=sums", "torchtitan.dtype=float32", "torchtitan.pack_length=128", "torchtitan.microbatch_rows=64"),
    *(f"schedule.steps={STEPS}", "schedule.prompts=32", "schedule.group_size=8", "optimizer.lr=1.5e-4"),
    *("torchtitan.evaluate_every=1000", "torchtitan.evaluate_prompts=512", "torchtitan.checkpoint_every=1000"),
]


REGIMES = Path(__file__).parents[2] / "docs/examples/regimes.py"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coldstart") / "small"
    coldstart("steps", folder)
    return folder


@pytest.fixture(scope="module")
def rewards(small, tmp_path_factory):
    """Mean reward of each step's rollouts, and of held-out prompts after the last."""
    out = tmp_path_factory.mktemp("learning") / "run"
    words = [word for each in [*SETTINGS, f"torchtitan.model={small}"] for word in ("--set", each)]
    assert run(["train", "minirl-r3-n2", "--backend", "torchtitan", *words, "--out", str(out)]) == 0
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
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


def test_regimes_stand_in_a_table_and_finished_runs_are_kept(small, tmp_path, monkeypatch, capfd):
    main = runpy.run_path(str(REGIMES))["main"]
    known = main.__globals__
    monkeypatch.setitem(known, "UPDATES", 4)
    monkeypatch.setitem(known, "PROMPTS", 2)
    monkeypatch.setitem(known, "REGIMES", {"bfloat16": known["REGIMES"]["bfloat16"]})
    monkeypatch.setitem(known, "REPLAYS", {mode: known["REPLAYS"][mode] for mode in ("none", "R3")})
    monkeypatch.setattr(sys, "argv", ["regimes.py", str(small), str(tmp_path)])
    main()
    table = [line for line in capfd.readouterr().out.splitlines() if line.startswith("| bfloat16")]
    assert [line.split(" | ")[1:3] for line in table] == [["1", "none"], ["1", "R3"], ["4", "none"], ["4", "R3"]]
    monkeypatch.setitem(known, "run", None)  # nothing is left to run
    main()
    assert [line for line in capfd.readouterr().out.splitlines() if line in table] == table
