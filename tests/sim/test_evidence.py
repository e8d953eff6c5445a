"""The evidence that a recipe needs before it goes to a cluster."""

import json
from dataclasses import replace

import pytest
import torch

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe, fingerprint
from firstorder.core.settings.toml import build, read
from firstorder.core.training.arms import Arm
from firstorder.core.training.loop import train
from firstorder.sim.config import Numerics, Sim
from firstorder.sim.exact.measure import measure
from firstorder.sim.training.backend import SimBackend
from firstorder.sim.trials import evidence
from firstorder.sim.trials.borders import Border, crossed
from firstorder.sim.trials.calibrate import Calibration, mismatch
from firstorder.sim.trials.neighbours import SELF, Extent, corrected, exact, neighbours, world
from firstorder.sim.trials.statistics import Estimate


def shipped(name):
    return build(Recipe, read(name))


def exactly(value):
    return Estimate(value=value, low=value, high=value)


SMALL = Extent(seeds=2, first_seed=100, updates=4, least_steps=2, evaluations=2, problems=2, longest=16)


def border(kl, high):
    return Border(finding="collapse", axis="horizon", base="a condition", kl=kl, low=high / 2, high=high)


def trial(collapsed, lead=0.0, part=None):
    return evidence.Trial(
        part=part,
        collapsed=exactly(collapsed),
        final_j=exactly(0.5),
        lead=exactly(lead),
        first={},
        worst={"replay_bias": 0.0},
    )


def found(horizon=512, length=512, borders=(), crossed=(), **trials):
    calibration = Calibration(
        router_scale=0.1, expert_scale=0.1, kl=1e-3, flip_rate=0.1, wanted_kl=1e-3, wanted_flip_rate=0.1
    )
    return evidence.Evidence(
        recipe="0" * 64,
        target=evidence.PUBLISHED,
        calibration=calibration,
        tried=evidence.Tried(horizon=horizon, length=length, responses=None, extent=Extent()),
        trials={SELF if name == "own" else name: one for name, one in trials.items()},
        borders=borders,
        crossed=crossed,
    )


def test_neighbours_differ_in_one_part_and_share_the_budget():
    recipe, extent = shipped("qwen3-30b-a3b-r3-n2"), Extent()
    near = neighbours(recipe, extent, sampled=False)
    assert list(near) == [
        SELF,
        "optimizer.lr halved",
        "router_replay.mode = disabled",
        "router_replay.mode = R2",
        "clip.kind = none",
        "schedule.minibatches = 1",
        "schedule.minibatches = 4",
    ]
    own = near[SELF].recipe
    assert fingerprint(own) == fingerprint(recipe)
    assert own.schedule.group_size == recipe.schedule.group_size
    for name, each in near.items():
        differ = [part for part in ("router_replay", "clip") if getattr(each.recipe, part) != getattr(own, part)]
        schedule = each.recipe.schedule
        assert differ == ([each.part] if each.part in ("router_replay", "clip") else [])
        assert (schedule.minibatches != own.schedule.minibatches) == (each.part == "schedule")
        assert schedule.steps * schedule.minibatches == extent.updates
        assert each.recipe.optimizer.lr == (extent.lr / 2 if name == "optimizer.lr halved" else extent.lr)


@pytest.mark.parametrize(
    ("recipe", "first"),
    [
        ("minirl-no-is", "ratio.of = theta/mu"),
        ("minirl-r3-no-is", "ratio.of = theta/mu"),
        ("reinforce", "ratio.of = theta/mu"),
        ("grpo", "correction.kind = ratio"),  # its clip bounds the ratio, which stays as it is
        ("minirl", "optimizer.lr halved"),
        ("tis", "optimizer.lr halved"),
    ],
)
def test_a_recipe_without_the_train_infer_factor_is_tried_with_it(recipe, first):
    near = neighbours(shipped(recipe), Extent(), sampled=False)
    assert list(near)[1] == first
    assert corrected(near[first].recipe)
    if recipe == "minirl-no-is":
        assert fingerprint(near[first].recipe) == fingerprint(shipped("minirl"))


def test_at_one_update_a_rollout_what_cannot_act_is_no_neighbour():
    near = neighbours(shipped("minirl-none-n1"), Extent(), sampled=False)
    assert list(near) == [SELF, "optimizer.lr halved", "router_replay.mode = R3", "schedule.minibatches = 2"]


def test_a_change_that_contradicts_the_recipe_or_needs_samples_is_no_neighbour():
    recipe = shipped("gspo").with_(schedule={"minibatches": 2})
    assert not exact(recipe)
    assert "clip.kind = none" in neighbours(recipe, Extent(), sampled=True)
    assert list(neighbours(recipe, Extent(), sampled=False)) == [SELF]


def test_many_updates_a_rollout_still_make_enough_steps_to_see_a_collapse():
    own = neighbours(shipped("reinforce-n64"), Extent(updates=64), sampled=False)[SELF].recipe
    assert own.schedule.steps == Extent().least_steps


@pytest.mark.parametrize(("share", "stable"), [(0.0, True), (0.125, True), (0.25, False), (1.0, False)])
def test_a_quarter_of_the_seeds_that_collapse_is_unstable(share, stable):
    assert found(own=trial(share)).stable is stable


def test_the_remedy_is_stable_and_leads_and_its_part_is_the_cause():
    own = trial(0.5)
    judged = found(own=own, a=trial(0.125, 0.3, "correction"), b=trial(0.0, 0.2, "lr"), c=trial(0.25, 0.9, "clip"))
    assert judged.remedy == "a"
    assert judged.cause == "no train-infer importance sampling: with a 1 of 8 seeds collapse"
    nothing = found(own=own, c=trial(0.25, 0.9, "clip"))
    assert (nothing.remedy, nothing.cause) == (None, "none of the neighbours is stable")
    sound = found(own=trial(0.0))
    assert (sound.remedy, sound.cause) == (None, None)


def test_what_starts_at_a_value_can_lose_it():
    own = {f"exact/{name}": torch.zeros(2, 4, dtype=torch.float64) for name in evidence.EXACT}
    own["exact/j_pi"] = torch.tensor([[0.2] * 4, [0.3] * 4], dtype=torch.float64)
    assert evidence.trial(own, own, None, 0.5).collapsed.value == 0.5
    assert evidence.trial(own, own, None, 0.3).collapsed.value == 0.0


def test_a_policy_without_a_gradient_has_no_error_relative_to_it():
    own = {f"exact/{name}": torch.ones(2, 3, dtype=torch.float64) for name in evidence.EXACT}
    own["exact/j_pi"] = torch.zeros(2, 3, dtype=torch.float64)
    own["exact/gradient_error"] = torch.tensor([[1.0, torch.nan, torch.nan], [3.0, 5.0, torch.nan]])
    said = evidence.trial(own, own, None, 0.5)
    assert (said.first["gradient_error"], said.worst["gradient_error"]) == (2.0, 5.0)


def test_beyond_the_trial_a_border_speaks():
    recipe = shipped("minirl-no-is")
    known = [border(0.09, 200), border(0.008, 2000)]
    over = crossed(known, recipe, horizon=32768, kl=0.0015)
    judged = found(length=32768, borders=known, crossed=over, own=trial(0.0))
    assert not judged.stable
    assert judged.remedy == "ratio.of = theta/mu"
    assert judged.cause.startswith("no train-infer importance sampling: unstable from ")
    assert judged.cause.endswith("and this has 32768")
    assert judged.extrapolation.startswith("from 512 tokens to 32768: unstable from ")
    assert "beyond none" in found(length=32768, borders=known, own=trial(0.0)).extrapolation
    assert "no border is known" in found(length=32768, own=trial(0.0)).extrapolation
    assert found(own=trial(0.0)).extrapolation == "none: it was tried at its own length"


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


@pytest.mark.parametrize("recipe", ["minirl-no-is", "gspo"])
def test_a_gate_says_what_it_saw(recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    small = replace(SMALL, sampled_longest=12, prompts=1, group=2)
    own = shipped(recipe)
    judged = evidence.judge(own, evidence.PUBLISHED, tmp_path, 64, extent=small, borders=[])
    document = json.loads(json.dumps(judged.json()))
    assert document["recipe"] == fingerprint(own)
    sampled = recipe == "gspo"
    assert document["tried"]["horizon"] == (12 if sampled else 16)
    assert document["tried"]["length"] == 64
    assert document["tried"]["responses"] == (2 if sampled else None)
    assert document["stable"] is True
    assert list(document["trials"]) == [SELF]
    one = document["trials"][SELF]
    assert (tmp_path / "cells" / one["run"] / "metrics.jsonl").is_file()
    assert one["worst"]["gradient_error"] >= one["first"]["gradient_error"] > 0
    assert one["lead"]["value"] == 0.0
    again = evidence.judge(own, evidence.PUBLISHED, tmp_path, 64, extent=small, borders=[])
    assert again.json() == judged.json()


def test_an_unstable_twin_is_tried_with_one_part_changed_at_a_time(monkeypatch, tmp_path):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    wild = replace(SMALL, lr=1.0, updates=5, evaluations=5)  # a step that undoes what was learnt
    judged = evidence.judge(shipped("minirl-no-is"), evidence.PUBLISHED, tmp_path, 16, extent=wild, borders=[])
    assert judged.trials[SELF].collapsed.value >= evidence.UNSTABLE
    assert list(judged.trials) == list(neighbours(shipped("minirl-no-is"), wild, sampled=False))
    assert judged.cause is not None
    assert all((tmp_path / "cells" / each["run"]).is_dir() for each in judged.json()["trials"].values())


def test_to_follow_the_expectation_is_to_train_without_the_responses():
    recipe = neighbours(shipped("minirl-r3-n2"), SMALL, sampled=False)[SELF].recipe
    sim = world(recipe, 16, Numerics(kind="noise", scale=0.1), SMALL, sampled=False)
    arms = (Arm(recipe=recipe, members=2),)
    trained, following = (SimBackend(sim, arms, torch.tensor([100, 101])) for _ in range(2))
    train(arms, trained)
    for _ in range(recipe.schedule.steps):
        for _ in range(recipe.schedule.minibatches):
            following.follow()
        following.sync_weights()
    assert all(torch.equal(w, following.weights[name]) for name, w in trained.weights.items())
