"""The collapse that comes from the engines alone, and its cure, as a user runs them; and the part of the bias it is."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from firstorder.cli.main import run
from firstorder.core.settings.toml import flat, read
from firstorder.sim.claims.drift import drift
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.exact.scene import build, engines
from firstorder.sim.training.expected import training_world
from firstorder.sim.trials.long import BASE

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
EXAMPLE = EXAMPLES / "mismatch.toml"
CURE = ("--set", "ratio.of=theta/mu")
SHORT = ("sim.horizon=1024", "sim.numerics.scale=0.1", "sim.members=2", "sim.seed=100", "schedule.steps=12")


def trained(folder, *more):
    """J of π after every update, `[S, K]`."""
    short = [word for each in (*SHORT, "sim.evaluate_every=1") for word in ("--set", each)]
    assert run(["train", str(EXAMPLE), *short, *more, "--out", str(folder)]) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([line["exact/j_pi"] for line in lines]).T


def test_what_was_known_is_lost_between_two_engines_and_kept_with_the_ratio(tmp_path):
    start = read(str(EXAMPLE))["sim"]["coldstart_value"]
    collapse, cured = trained(tmp_path / "collapse"), trained(tmp_path / "cured", *CURE)
    assert (collapse[:, -1] < 0.6 * start).all()
    assert (collapse[:, 2:] < collapse[:, 1:-1]).all()
    assert (cured[:, -1] > 1.2 * start).all()


def test_the_cure_is_all_that_the_shipped_recipes_differ_in():
    with_ratio, without = (flat(read(name)) for name in ("minirl", "minirl-no-is"))
    differ = {key for key in with_ratio if with_ratio[key] != without.get(key) and not key.startswith("about.")}
    assert {f"{key}={with_ratio[key]}" for key in differ} == {CURE[1]}
    mine = flat(read(str(EXAMPLE)))
    assert {key for key in without if mine.get(key) != without[key]} <= {
        *("about.name", "about.summary", "about.source", "about.scope", "optimizer.lr"),
        *("schedule.steps", "schedule.prompts", "schedule.group_size"),
    }


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(EXAMPLES / "drift.py"))


def test_the_arms_leave_in_parts_of_one_bias(script):
    sim, seeds = BASE.but(horizon=8, sim=(("coldstart", "none"),)).world(range(100, 102)), torch.arange(100, 102)
    weights = starting_weights(sim, seeds)
    one = drift(build(sim, training_world(sim), engines(sim, seeds), weights, modes=["disabled"]), "disabled")
    edges = {name: arm(one) for name, arm in script["ARMS"].items()}
    whole = edges["with the ratio"] + edges["without"]
    assert torch.equal(edges["without, where all fail"] + edges["without, elsewhere"], whole)
    both = edges["with, and the drift"] + edges["without, and no drift"]
    assert torch.allclose(both, whole, rtol=1e-12, atol=1e-12)
    assert float((edges["without, and no drift"].sum(-1)).abs().max()) < 1e-9


def test_the_drift_is_enough_for_a_fall_and_without_it_there_is_none(script):
    condition = BASE.but(updates=8)
    ends = {
        arm: script["course"](arm, condition, range(100, 102))[:, -1]
        for arm in ("with, and the drift", "without, and no drift")
    }
    assert (ends["with, and the drift"] < condition.value).all()
    assert (ends["without, and no drift"] > condition.value).all()
