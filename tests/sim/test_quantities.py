"""What a run logs: every name is described, and the new ones are what they say."""

import json
import statistics

import pytest
import torch

from firstorder.cli.main import run
from firstorder.core.method.recipe import Recipe
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm
from firstorder.core.training.loop import logged_quantities, train
from firstorder.sim.config import Numerics, Sim
from firstorder.sim.training.backend import SimBackend

TINY = [
    *("sim.vocab=3", "sim.horizon=3", "sim.prompts=2", "sim.width=4", "sim.expert_width=4", "sim.experts=4"),
    *("sim.layers=3", "sim.evaluate_every=2", "schedule.steps=2", "schedule.prompts=2", "schedule.group_size=4"),
]
SIM = Sim(vocab=4, horizon=4, prompts=2, pool=6, width=8, expert_width=8, evaluate_every=1)


@pytest.mark.parametrize("name", ["grpo", "minirl-r3-n2", "dapo", "gspo", "tis", "mis", "vespo"])
def test_every_logged_name_is_described_beside_the_log_and_nothing_else_is(name, tmp_path):
    settings = [word for each in TINY for word in ("--set", each)]
    assert run(["train", name, *settings, "--out", str(tmp_path / "run")]) == 0
    logged = set()
    for log in ("metrics", "receipts"):
        for line in (tmp_path / "run" / f"{log}.jsonl").read_text().splitlines():
            logged |= json.loads(line).keys() - {"step"}
    known = json.loads((tmp_path / "run" / "quantities.json").read_text())
    assert logged == known.keys()
    assert all({"formula", "unit", "source", "alarm"} == entry.keys() for entry in known.values())
    assert all(entry["formula"] and entry["unit"] and entry["source"] for entry in known.values())


def test_a_name_means_one_thing():
    """No two owners describe the same name, so none hides the other."""
    from firstorder.core.method import surrogate
    from firstorder.core.training import backend, diagnostics, inert, loop, replay, strata
    from firstorder.sim.training import halves
    from firstorder.sim.training.backend import EXACT

    tables = [module.QUANTITIES for module in (diagnostics, strata, loop, backend, halves, replay, inert)]
    names = [name for table in (*tables, surrogate.RECEIPTS, EXACT) for name in table]
    assert len(names) == len(set(names))
    whole = logged_quantities(SimBackend(SIM, (Arm(recipe=recipe("minirl"), members=1),), torch.tensor([1])))
    assert set(names) == {name for name in whole if "_layer_" not in name}


def test_alarms_are_those_of_a_named_source():
    whole = logged_quantities(SimBackend(SIM, (Arm(recipe=recipe("minirl"), members=1),), torch.tensor([1])))
    alarms = {name: (q.alarm, q.source) for name, q in whole.items() if q.alarm is not None}
    assert alarms == {
        "token_mult_prob_error": (1.05, "NeMo-RL"),
        "ratio_tail_2": (0.1, "F(2) of arXiv 2510.11370"),
    }


def recipe(name, *more):
    small = ["schedule.steps=2", "schedule.prompts=4", "schedule.group_size=4", "optimizer.lr=0.01"]
    return toml.build(Recipe, toml.override(toml.read(name), [*small, *more]))


def logged(name, *more):
    logs = []
    arms = (Arm(recipe=recipe(name, *more), members=3),)
    train(arms, SimBackend(SIM, arms, torch.tensor([5, 6, 7])), on_step=logs.append)
    return logs


def test_the_first_update_of_a_step_has_the_remainder_of_its_rollout():
    """θ = θ_old there: one update a step logs the same number twice. A second one logs another, once θ has moved."""
    for log in logged("minirl-r3"):
        both = [log.metrics[f"{where}second_order_remainder"] for where in ("", "update/")]
        torch.testing.assert_close(both[0], both[1], rtol=1e-9, atol=1e-16)
        assert (both[0] != 0).all()
    for log in logged("minirl-r3", "schedule.minibatches=2"):
        both = [log.metrics[f"{where}second_order_remainder"] for where in ("", "update/")]
        assert ((both[0] - both[1]).abs() > 1e-9).any()


def test_a_mask_and_a_truncation_leave_their_receipts():
    acted = logged("minirl-tis", "correction.high=1.0")[0].receipts
    assert (acted["truncated"] > 0).all()
    assert (acted["masked"] == 0).all()
    acted = logged("icepop", "correction.low=0.999", "correction.high=1.001")[0].receipts
    assert (acted["masked"] > 0).all()
    assert (acted["masked"] <= acted["corrected"]).all()
    assert (acted["truncated"] == 0).all()


def test_rewards_have_the_mean_and_the_spread_of_the_batch():
    arms = (Arm(recipe=recipe("minirl"), members=3),)
    rewards = SimBackend(SIM, arms, torch.tensor([5, 6, 7])).rollout(0).rewards
    found = logged("minirl")[0].metrics
    for member, each in enumerate(rewards.tolist()):
        assert float(found["reward"][member]) == pytest.approx(statistics.fmean(each), rel=1e-12)
        assert float(found["reward_std"][member]) == pytest.approx(statistics.pstdev(each), rel=1e-12)


@pytest.mark.parametrize("update", ["sampled", "expected"])
def test_what_may_warn_of_a_collapse_is_logged_in_every_step(update):
    sim = SIM.model_copy(update={"update": update, "evaluate_every": 0})
    arms, logs = (Arm(recipe=recipe("minirl-r3-n2"), members=2),), []
    train(arms, SimBackend(sim, arms, torch.tensor([5, 6])), on_step=logs.append)
    names = ("kl_failing", "kl_succeeding", "kl_flipped", "reward_std", "route/thin_margin", "update/grad_norm")
    for log in logs:
        assert all(torch.isfinite(log.metrics[name]).all() for name in names)
        assert {"clip_upper", "clip_lower"} <= log.receipts.keys()
        sides = [log.metrics[name] for name in ("kl_failing", "kl_succeeding")]
        assert (sides[0] != sides[1]).all()


def test_engines_that_agree_log_no_flipped_kl():
    arms, logs = (Arm(recipe=recipe("minirl"), members=2),), []
    sim = SIM.model_copy(update={"numerics": Numerics(kind="exact")})
    train(arms, SimBackend(sim, arms, torch.tensor([5, 6])), on_step=logs.append)
    assert all(float(log.metrics["route/flip_rate"].max()) == 0 for log in logs)
    assert all(float(log.metrics["kl_flipped"].abs().max()) == 0 for log in logs)
