"""The evidence that a recipe needs before it goes to a cluster."""

import json
from dataclasses import replace

import pytest
import torch

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe, fingerprint
from firstorder.core.settings.toml import build, read
from firstorder.sim.config import Sim
from firstorder.sim.exact.measure import measure
from firstorder.sim.trials import evidence
from firstorder.sim.trials.calibrate import Calibration, mismatch
from firstorder.sim.trials.statistics import Estimate


def shipped(name):
    return build(Recipe, read(name))


def exactly(value):
    return Estimate(value=value, low=value, high=value)


def trial(collapsed, lead=0.0):
    return evidence.Trial(
        collapsed=exactly(collapsed), final_j=exactly(0.5), lead=exactly(lead), first={}, worst={"replay_bias": 0.0}
    )


def found(**trials):
    named = {evidence.SELF if name == "own" else name: one for name, one in trials.items()}
    calibration = Calibration(
        router_scale=0.1, expert_scale=0.1, kl=1e-3, flip_rate=0.1, wanted_kl=1e-3, wanted_flip_rate=0.1
    )
    return evidence.Evidence(recipe="0" * 64, target=evidence.PUBLISHED, calibration=calibration, trials=named)


def test_neighbours_differ_in_one_part_and_share_the_budget():
    recipe = shipped("qwen3-30b-a3b-r3-n2")
    near = evidence.neighbours(recipe)
    assert list(near) == [
        evidence.SELF,
        "router_replay.mode = disabled",
        "router_replay.mode = R2",
        "clip.kind = none",
        "schedule.minibatches = 1",
        "schedule.minibatches = 4",
    ]
    own = near[evidence.SELF]
    assert fingerprint(own) == fingerprint(recipe)
    parts = ("router_replay", "clip", "schedule")
    for name, each in near.items():
        differ = [part for part in parts if getattr(each, part) != getattr(own, part)]
        assert differ == ([] if name == evidence.SELF else [name.split(".")[0]])
        assert each.schedule.steps * each.schedule.minibatches == evidence.UPDATES
        assert each.schedule.prompts // each.schedule.minibatches == evidence.PROMPTS
        assert each.optimizer.lr == evidence.LR


def test_at_one_update_a_rollout_there_is_no_half_of_it():
    near = evidence.neighbours(shipped("minirl-none-n1"))
    assert "schedule.minibatches = 2" in near
    assert "schedule.minibatches = 0" not in near


def test_many_updates_a_rollout_still_make_enough_steps_to_see_a_collapse():
    assert evidence.schedule(shipped("reinforce-n64"))["steps"] == evidence.LEAST_STEPS


@pytest.mark.parametrize(("share", "stable"), [(0.0, True), (0.125, True), (0.25, False), (1.0, False)])
def test_a_quarter_of_the_seeds_that_collapse_is_unstable(share, stable):
    assert found(own=trial(share)).stable is stable


def test_the_safest_has_fewest_collapses_then_a_lead_that_is_settled():
    unsettled = replace(trial(0.0), lead=Estimate(value=0.3, low=-0.1, high=0.5))
    assert found(own=trial(0.0), other=unsettled).safest == evidence.SELF
    assert found(own=trial(0.0), other=trial(0.0, lead=0.1)).safest == "other"
    assert found(own=trial(0.5), a=trial(0.125, lead=0.3), b=trial(0.0, lead=-0.2)).safest == "b"
    assert found(own=trial(0.25), worse=trial(0.5, lead=0.9)).safest == evidence.SELF


def test_evidence_of_another_recipe_is_refused():
    recipe = shipped("minirl-r3-n2")
    evidence.check_evidence(recipe, fingerprint(shipped("qwen3-30b-a3b-r3-n2")), "--match run")
    with pytest.raises(ConfigError, match="--match run is evidence of another recipe \\(hash"):
        evidence.check_evidence(recipe, fingerprint(shipped("minirl-r2-n2")), "--match run")


@pytest.mark.parametrize(("recipe", "mode"), [("minirl-r3", "R3"), ("minirl", "disabled")])
def test_the_mismatch_is_that_of_measure_with_the_same_replay(recipe, mode):
    sim = Sim(vocab=3, horizon=3, seed=0)
    measured = measure(shipped(recipe), sim)
    kl, flips = mismatch(sim, torch.tensor([0]), mode)
    assert float(kl) == pytest.approx(measured["kl_mu_old_replayed"], rel=1e-12)
    assert float(flips) == pytest.approx(measured["flip_rate"], rel=1e-12)


@pytest.mark.parametrize(
    ("horizon", "small"),
    [
        (None, {"vocab": 4, "horizon": 2, "pool": 9, "coldstart": "none"}),
        (16, {"prompts": 2, "positions": 2, "width": 8, "coldstart_value": 0.5}),
    ],
)
def test_a_gate_trains_every_neighbour_and_says_what_it_saw(horizon, small, monkeypatch, tmp_path):
    for name, few in {"SEEDS": 2, "CALIBRATION_SEEDS": 1, "UPDATES": 4, "LEAST_STEPS": 2}.items():
        monkeypatch.setattr(evidence, name, few)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    whole = evidence.world
    monkeypatch.setattr(evidence, "world", lambda *given: whole(*given).model_copy(update=small))
    recipe = shipped("minirl-r2-n2")
    judged = evidence.judge(recipe, evidence.PUBLISHED, tmp_path, horizon)
    document = json.loads(json.dumps(judged.json()))
    assert document["recipe"] == fingerprint(recipe)
    assert document["stable"] is True
    assert list(document["trials"]) == list(evidence.neighbours(recipe))
    for one in document["trials"].values():
        assert (tmp_path / "cells" / one["run"] / "metrics.jsonl").is_file()
        assert one["worst"]["gradient_error"] >= one["first"]["gradient_error"] > 0
    assert document["trials"][evidence.SELF]["lead"]["value"] == 0.0
    assert document["trials"]["router_replay.mode = disabled"]["worst"]["replay_bias"] == 0.0
    again = evidence.judge(recipe, evidence.PUBLISHED, tmp_path, horizon)
    assert again.json() == judged.json()
