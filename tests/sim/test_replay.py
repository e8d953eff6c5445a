"""The receipts of replay in the simulator: exact, sampled, and those of a run that goes wrong."""

import json
import math

import pytest
import torch

from firstorder.cli.main import run
from firstorder.core.method.recipe import Recipe
from firstorder.core.quantities import means
from firstorder.core.routing import Replay, replay_rows
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm
from firstorder.core.training.loop import train
from firstorder.core.training.replay import QUANTITIES, arrivals, replayed, run_rows
from firstorder.sim.config import Sim
from firstorder.sim.exact.agree import mismatch
from firstorder.sim.exact.forward import along
from firstorder.sim.exact.measure import measure
from firstorder.sim.exact.replay import moments
from firstorder.sim.exact.tree import episodes
from firstorder.sim.model import policy
from firstorder.sim.model.policy import load
from firstorder.sim.sampling.sequences import score
from firstorder.sim.training.backend import SimBackend

CHANGES = [{}, {"task": "guess", "vocab": 4, "horizon": 4, "turn_length": 2, "prompt_length": 3, "layers": 3}]
MODES = ("disabled", "R2", "R3")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("change", CHANGES, ids=["one turn", "turns"])
def test_the_exact_receipts_are_those_of_every_response_weighed(mode, change, small, make_scene, same):
    """The training-time code, run over every response in full: prompt, answers of an environment and all."""
    sim = small(staleness=1, lr=1.0, numerics={"kind": "noise", "scale": 0.3}, **change)
    scene = make_scene(sim)
    told = episodes(scene.world, scene.responses)
    weight = run_rows(told.lengths, told.tokens.shape[-1]) * scene.measure[..., None]
    mu = along(scene.mu_old.routes, scene.world, scene.responses)
    given = {
        "disabled": torch.full_like(mu, -1),
        "R2": along(scene.old["R2"].routes, scene.world, scene.responses),
        "R3": mu,
    }[mode]
    with torch.no_grad():
        done = score(load(scene.weights, scene.pi, sim), told.tokens[None], Replay(ids=given))
    before = torch.cat([torch.full_like(mu[:, :, :1], -1), mu[:, :, :-1]], dim=2)
    counts = replay_rows(given.flatten(1, 2), given.flatten(1, 2), done.live.flatten(1, 2), weight.flatten(1))
    expected = replayed(counts, told.tokens.shape[-1])
    expected |= arrivals(mu.flatten(1, 2), before.flatten(1, 2), weight.flatten(1))
    found = moments(scene, mode)
    assert found.keys() == expected.keys()
    for name, (rows, total) in expected.items():
        same(found[name][0], rows.tolist())
        same(found[name][1], total.tolist())
    moved = float(means(found)["replay/rows_changed"])
    assert (moved > 0) == (mode != "disabled")
    assert 0 < float(means(found)["replay/routes_repeated"]) < 1


def test_what_a_run_records_is_what_the_exact_receipts_expect(make_recipe):
    """Fifteen runs of one policy and its engines, which differ in their prompts and samples alone."""
    sim = Sim(vocab=4, horizon=3, prompts=3, pool=3, width=8, expert_width=8, numerics={"kind": "noise", "scale": 0.3})
    method = make_recipe("minirl-r3", "schedule.prompts=64", "schedule.group_size=2", "schedule.steps=1")
    arms = (Arm(recipe=method, members=15),)
    backend = SimBackend(sim.model_copy(update={"evaluate_every": 0}), arms, torch.zeros(15, dtype=torch.int64))
    backend.seeds = torch.arange(15)
    logs = []
    train(arms, backend, on_step=logs.append)
    exact = measure(method, sim)["replay"]
    assert exact["rows_changed"] > 0.05
    for name in QUANTITIES:
        each = logs[0].receipts[name]
        error = float(each.std()) / math.sqrt(len(each))
        assert abs(float(each.mean()) - exact[name.removeprefix("replay/")]) <= 3 * error + 1e-12, name


def test_receipts_of_a_measurement_are_shares_that_hang_together(small, make_recipe):
    for name, staleness in (("minirl", 0), ("minirl-r2", 0), ("minirl-r2", 2), ("minirl-r3", 0)):
        r = measure(make_recipe(name), small(staleness=staleness, lr=1.0))
        rows = r["replay"]
        for key in (name.removeprefix("replay/") for name in QUANTITIES):
            layers = rows[f"{key}_per_layer"]
            assert len(layers) == 2
            assert rows[key] == pytest.approx(sum(layers) / 2)
        assert rows["rows_replayed"] + rows["rows_live"] == 1
        assert rows["rows_replayed"] == (0 if name == "minirl" else 1)
        assert (rows["rows_changed"] > 0) == (name == "minirl-r3" or (staleness > 0 and name == "minirl-r2"))
        assert rows["routes_arrived"] == 1
        assert rows["routes_missing"] == 0
        assert 0 < rows["rows_padded"] < 1
        inert = any("router_replay.mode = R2" in line for line in r["inert"])
        assert inert == (name == "minirl-r2" and not staleness)


def recipe(name, *more):
    small = ["schedule.steps=2", "schedule.prompts=8", "schedule.group_size=4", "optimizer.lr=0.01"]
    return toml.build(Recipe, toml.override(toml.read(name), [*small, *more]))


SIM = Sim(vocab=4, horizon=4, prompts=2, pool=6, width=8, expert_width=8, evaluate_every=0)


def logged(*names, sim=SIM, minibatches=1):
    arms = tuple(Arm(recipe=recipe(n, f"schedule.minibatches={minibatches}"), members=2) for n in names)
    logs = []
    train(arms, SimBackend(sim, arms, torch.arange(2).repeat(len(names))), on_step=logs.append)
    return logs


def test_every_step_records_what_replay_did():
    for log in logged("minirl", "minirl-r2", "minirl-r3"):
        acted = log.receipts
        assert acted["replay/rows_replayed"].tolist() == [0, 0, 1, 1, 1, 1]
        assert acted["replay/rows_live"].tolist() == [1, 1, 0, 0, 0, 0]
        assert acted["replay/rows_changed"][:4].tolist() == [0, 0, 0, 0]  # R2 at N = 1 is inert
        assert (acted["replay/rows_changed"][4:] > 0).all()
        assert acted["inert/router_replay"].tolist() == [0, 0, 1, 1, 0, 0]
        assert acted["inert/clip"].tolist() == [1] * 6
        assert (acted["replay/routes_arrived"] == 1).all()
        whole = sum(acted[f"replay/rows_changed_layer_{i}"] for i in range(2)) / 2
        torch.testing.assert_close(whole, acted["replay/rows_changed"])


def test_the_second_update_of_r2_changes_rows_and_is_not_inert():
    log = logged("minirl-r2", minibatches=4)[0]
    assert (log.receipts["replay/rows_changed"] > 0).all()
    assert log.receipts["inert/router_replay"].tolist() == [0, 0]


def test_engines_that_agree_replay_every_row_and_change_none():
    same = SIM.model_copy(update={"numerics": SIM.training_numerics})
    for log in logged("minirl-r3", sim=same):
        assert log.receipts["replay/rows_replayed"].tolist() == [1, 1]
        assert log.receipts["replay/rows_changed"].tolist() == [0, 0]
        assert log.receipts["inert/router_replay"].tolist() == [1, 1]
    assert (logged("minirl-r3", sim=same, minibatches=4)[0].receipts["inert/router_replay"] == 0).all()


def ignoring(monkeypatch):
    """A router that returns before its replay."""
    real = policy.route
    monkeypatch.setattr(policy, "route", lambda logits, router, bias, replay: real(logits, router, bias))


def dropping(monkeypatch):
    """Routes that are lost between the engines."""
    real = SimBackend.rollout

    def rollout(self, step):
        batch = real(self, step)
        batch.routes.fill_(-1)
        return batch

    monkeypatch.setattr(SimBackend, "rollout", rollout)


def mistaking(monkeypatch):
    """R2's routes under the flag of R3."""
    real = SimBackend.score

    def score(self, batch):
        scored, found = real(self, batch)
        with torch.no_grad():
            from firstorder.sim.sampling.sequences import score as run

            live = run(load(self.weights, self.engines.pi, self.sim), batch.tokens).routes
        scored.replay.ids.copy_(torch.where(batch.routes >= 0, live, -1))
        return scored, found

    monkeypatch.setattr(SimBackend, "score", score)


FAULTS = {
    "a router that ignores its replay": (ignoring, "were replayed, with rows lost in all 2 MoE layers"),
    "routes that are dropped": (
        dropping,
        "no rows were given to replay in all 2 MoE layers; the routes of the rollout",
    ),
    "the wrong routes": (mistaking, "none changed the router's choice, though the engines' routes differ at"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_replay_that_is_on_and_does_not_take_place_stops_the_run(name, tmp_path, monkeypatch, capsys):
    fault, said = FAULTS[name]
    settings = [
        "schedule.steps=3",
        "schedule.prompts=8",
        "schedule.group_size=4",
        "sim.evaluate_every=0",
        "sim.vocab=3",
    ]
    command = ["train", "minirl-r3-n2", *(w for s in settings for w in ("--set", s)), "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        fault(patch)
        assert run(command) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("firstorder: router_replay.mode = R3 is on, ")
    assert said in err[-1]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert run([*command, "--resume"]) == 0
    receipts = [json.loads(line) for line in (tmp_path / "run" / "receipts.jsonl").read_text().splitlines()]
    assert [r["replay/rows_replayed"] for r in receipts] == [1.0] * 3


@pytest.mark.parametrize("name", FAULTS)
def test_without_replay_none_of_it_matters(name, monkeypatch):
    FAULTS[name][0](monkeypatch)
    if name != "the wrong routes":
        assert len(logged("minirl")) == 2


@pytest.mark.parametrize(
    ("numerics", "training", "apart"),
    [
        ({"kind": "exact", "scale": 0.5}, {"kind": "exact"}, False),
        ({"kind": "noise", "scale": 0.0}, {"kind": "exact"}, False),
        ({"kind": "bf16", "seed": 3}, {"kind": "bf16"}, False),
        ({"kind": "noise", "scale": 1e-9}, {"kind": "exact"}, True),
        ({"kind": "batch"}, {"kind": "exact"}, True),
    ],
)
def test_engines_are_told_apart_by_what_they_compute(numerics, training, apart):
    sim = Sim(**(SIM.model_dump() | {"numerics": numerics, "training_numerics": training}))
    assert mismatch(sim) == apart
    log = logged("minirl-r3", sim=sim)[0]
    assert bool(log.receipts["inert/router_replay"].any()) != apart
    assert bool(log.metrics["route/flip_rate"].any()) <= apart


def test_a_gate_of_one_expert_has_one_order():
    sim = Sim(**(SIM.model_dump() | {"numerics": {"kind": "gate_order"}, "top_k": 1}))
    assert not mismatch(sim)
    assert mismatch(sim.model_copy(update={"top_k": 2}))
