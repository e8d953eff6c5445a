"""Training where contexts merge: sampled from a table, in expectation, in both worlds."""

import json
import math

import pytest
import torch
from chains import PLAIN, SETTINGS, TASKS, arms_of, recipe, sampled_updates, sim_of, trained

from firstorder.cli.main import run
from firstorder.core.errors import ConfigError, ReplayError
from firstorder.core.training.loop import train
from firstorder.sim.exact import objectives
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.scene import build
from firstorder.sim.model import noise
from firstorder.sim.model.chunks import chunked_step
from firstorder.sim.model.policy import flatten, load
from firstorder.sim.tasks.task import picks
from firstorder.sim.training.backend import SimBackend
from firstorder.sim.training.expected import check_update, training_world
from firstorder.sim.training.session import SimRun

UNKNOWN = ("critic/vf_explained_var",)  # NaN where all returns are alike


@pytest.mark.parametrize("update", ["sampled", "expected"])
@pytest.mark.parametrize("kind", TASKS)
def test_every_member_is_the_run_alone(kind, update):
    names = ["minirl", "minirl-r2", "minirl-r3", "reinforce-is"] + ["gspo", "minirl-critic"] * (update == "sampled")
    sim, more = sim_of(kind, update=update), ("schedule.minibatches=2",)
    _, logs = trained(sim, arms_of(names, 2, *more), [5, 6] * len(names))
    for place, (name, seed) in enumerate((name, seed) for name in names for seed in (5, 6)):
        _, alone = trained(sim, arms_of([name], 1, *more), [seed])
        for a, b in zip(logs, alone, strict=True):
            assert b.metrics
            for key, value in (b.metrics | b.receipts).items():
                together = (a.metrics | a.receipts)[key][place]
                torch.testing.assert_close(together, value[0], rtol=1e-8, atol=1e-10, equal_nan=key in UNKNOWN)


def logs_of(out):
    return [(out / name).read_bytes() for name in ("metrics.jsonl", "receipts.jsonl")]


@pytest.mark.parametrize("update", ["sampled", "expected"])
@pytest.mark.parametrize("kind", ["answer", "feedback"])
def test_a_resumed_run_is_the_whole_one_bit_for_bit(kind, update, tmp_path):
    sim = sim_of(kind, update=update, checkpoint_every=2, members=2)
    run_of = SimRun(recipe=recipe("minirl-r3", "schedule.steps=4", "schedule.minibatches=2"), sim=sim)
    run_of.prepare(tmp_path / "whole").run()
    run_of.prepare(tmp_path / "cut").run()
    (tmp_path / "cut/checkpoints/step-0000004.pt").unlink()
    run_of.prepare(tmp_path / "cut", resume=True).run()
    assert logs_of(tmp_path / "cut") == logs_of(tmp_path / "whole")


@pytest.mark.parametrize("kind", TASKS)
def test_a_token_is_said_as_its_context_in_the_table_says_it(kind):
    """Token by token, with plain loops: log-probs, experts, what the environment said, and rewards."""
    sim = sim_of(kind)
    backend = SimBackend(sim, arms_of(["minirl-r3"]), torch.tensor([5]))
    batch, task = backend.rollout(0), backend.task
    table = task.contexts(torch.arange(sim.training_prompts))
    mu = chunked_step(load(backend.weights, backend.engines.mu, sim), None, table.features, table.keys, None)
    layout, size = task.layout, len(table.features)
    places = set(layout.places.tolist())
    for b in range(batch.tokens.shape[1]):
        at, earned = int(table.start[batch.groups[0, b]]), None
        for position in range(1, int(batch.lengths[0, b])):
            token = int(batch.tokens[0, b, position])
            assert torch.equal(batch.routes[0, b, position - 1], mu.ids[0, at])
            if position not in places:
                assert not batch.mask[0, b, position]
                assert token in (1, 2)
                continue
            assert float(batch.logp_mu[0, b, position]) == pytest.approx(float(mu.logp[0, at, token]), rel=1e-12)
            place = int(table.follow[at, token])
            at, earned = min(place, size - 1), float(table.rewards[place])
        assert float(batch.rewards[0, b]) == earned
        assert (batch.routes[0, b, int(batch.lengths[0, b]) - 1 :] == -1).all()


def test_responses_that_answer_have_many_lengths_and_those_of_several_turns_are_answered():
    lengths = SimBackend(sim_of("answer"), arms_of(["minirl"]), torch.tensor([5])).rollout(0).lengths
    assert len(lengths.unique()) > 2
    batch = SimBackend(sim_of("feedback"), arms_of(["minirl"]), torch.tensor([5])).rollout(0)
    assert batch.tokens.shape[-1] == 1 + 6 + 2
    assert not batch.mask[..., [3, 6]].any()
    assert set(batch.tokens[..., [3, 6]].unique().tolist()) == {1, 2}


def test_the_responses_of_both_worlds_are_the_same():
    graph, tree = (
        SimBackend(sim_of("tree", world=world), arms_of(["minirl-r3"]), torch.tensor([5])).rollout(1)
        for world in ("graph", "tree")
    )
    assert all(
        torch.equal(a, b) for a, b in zip(vars(graph).values(), vars(tree).values(), strict=True) if a is not None
    )


@pytest.mark.parametrize("kind", ["answer", "feedback"])
def test_replay_takes_place_and_changes_rows(kind):
    _, logs = trained(sim_of(kind), arms_of(["minirl-r2", "minirl-r3"], 1, "schedule.minibatches=2"), [5, 5])
    r2, r3 = logs[-1].receipts["replay/rows_replayed"].tolist()
    assert r2 == r3 == 1
    assert float(logs[-1].receipts["replay/rows_changed"][1]) > 0
    assert float(logs[-1].receipts["replay/routes_missing"].sum()) == 0


def test_routes_that_do_not_arrive_stop_the_run(monkeypatch):
    arms = arms_of(["minirl-r3"])
    backend = SimBackend(sim_of(), arms, torch.tensor([5]))
    gathering = type(backend.reader)._gathering
    monkeypatch.setattr(
        type(backend.reader),
        "_gathering",
        lambda self, replay, contexts: lambda x: gathering(self, replay, contexts)(x) * 0 - 1,
    )
    with pytest.raises(ReplayError, match="0 were replayed"):
        train(arms, backend)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("minirl", "horizon"), ("minirl-r3", "answer"), ("minirl-length-norm", "answer"), ("reinforce-is", "answer")],
)
def test_the_mean_of_sampled_updates_is_the_expected_one(name, kind):
    """Many members with the same weights; within 5 standard errors along 40 random directions."""
    members = 128
    sim = sim_of(kind, numerics={"kind": "noise", "scale": 0.4})
    arm = arms_of([name], members, *PLAIN)[0]
    backend = SimBackend(sim, (arm,), torch.arange(members))
    first = {key: w[:1].expand_as(w).contiguous() for key, w in backend.weights.items()}
    backend.weights = backend.rollout_weights = first
    backend.engines = type(backend.engines)(
        pi=backend.engines.pi.repeat(members), mu=backend.engines.mu.repeat(members)
    )
    found = sampled_updates(backend, arm, 16)
    one = {key: w[:1] for key, w in first.items()}
    scene = build(sim, training_world(sim), backend.engines.members(slice(1)), one)
    u = Measurement(scene=scene, recipe=arm.recipe).update[0]
    key = noise.combine(noise.mix(torch.arange(40))[:, None], torch.arange(len(u)))
    along = torch.cat([noise.normal(key), u[None] / u.norm()]).T
    seen, expected = found @ along, u @ along
    error = seen.std(0) / math.sqrt(len(seen))
    assert ((seen.mean(0) - expected).abs() < 5 * error).all()
    assert float(expected[-1]) > 10 * float(error[-1])  # so that half of it would be found out


@pytest.mark.parametrize("kind", ["horizon", "answer", "tree"])
@pytest.mark.parametrize("name", ["minirl", "minirl-r2", "minirl-r3", "cispo"])
def test_the_first_expected_update_is_that_of_measure(name, kind):
    sim, arms = sim_of(kind, update="expected", pool=3), arms_of([name], 2, *PLAIN, "schedule.steps=1")
    fresh = SimBackend(sim, arms, torch.tensor([5, 6]))
    backend, _ = trained(sim, arms, [5, 6])
    scene = build(sim, training_world(sim), fresh.engines, fresh.weights)
    assert scene.world.prompts == 3
    moved = flatten(backend.weights).detach() - flatten(fresh.weights)
    torch.testing.assert_close(moved, Measurement(scene=scene, recipe=arms[0].recipe).update, rtol=1e-9, atol=1e-12)


def test_later_expected_updates_are_stale():
    """θ_old and μ_old stay those of the rollout over the mini-batches of a step."""
    sim, more = sim_of(update="expected"), [*PLAIN, "schedule.steps=1"]
    once, twice = (trained(sim, arms_of(["minirl-r3"], 1, *more, f"schedule.minibatches={n}"), [5])[0] for n in (1, 2))
    fresh = SimBackend(sim, arms_of(["minirl-r3"]), torch.tensor([5]))
    scene = build(sim, training_world(sim), fresh.engines, fresh.weights, once.weights)
    second = Measurement(scene=scene, recipe=recipe("minirl-r3")).update
    moved = flatten(twice.weights).detach() - flatten(once.weights)
    torch.testing.assert_close(moved, second, rtol=1e-9, atol=1e-12)


def test_reinforce_with_the_sequence_ratio_is_the_gradient(same):
    """E_μ[Π ρ · A Σ ∇ log π] = ∇J for any engines and any staleness."""
    sim = sim_of("answer")
    backend = SimBackend(sim, arms_of(["minirl"]), torch.tensor([5]))
    theta = {name: 1.1 * w for name, w in backend.weights.items()}
    scene = build(sim, training_world(sim), backend.engines, backend.weights, theta)
    method = recipe("reinforce-is")
    same(Measurement(scene=scene, recipe=method).update, objectives.gradient(scene, "disabled"), 1e-9)


def test_exact_evaluations_of_all_kinds_are_numbers():
    names = ["minirl-r3", "gspo", "ppo-critic", "mis", "dapo"]
    _, logs = trained(sim_of("answer"), arms_of(names), [5] * len(names))
    found = {name: x for name, x in logs[1].metrics.items() if name.startswith("exact/")}
    assert "exact/gradient_error" in found
    assert all(x.isfinite().all() for x in found.values())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "gspo",
            {},
            "that of gspo has no exact form in sim.world = graph.* use sim.update = sampled or sim.world = tree",
        ),
        ("minirl-critic", {}, "knows no critic that is learnt .* got advantage.baseline = value; use a baseline over"),
        ("minirl", {"numerics": {"kind": "batch"}}, "needs one update, but numerics.kind = batch draws many"),
    ],
)
def test_what_has_no_expected_update_is_refused(name, change, message):
    with pytest.raises(ConfigError, match=message):
        check_update(recipe(name), sim_of(update="expected", **change))
    check_update(recipe(name), sim_of(**change))


def test_a_recipe_without_an_exact_form_is_refused_before_anything_is_written(capsys, tmp_path):
    given = ["sim.world=graph", "sim.task=chain", "sim.update=expected", "sim.horizon=6", *SETTINGS]
    command = [x for s in given for x in ("--set", s)]
    assert run(["train", "gspo", "--out", str(tmp_path / "a"), *command]) == 2
    assert "gspo has no exact form" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert run(["train", "minirl", "--out", str(tmp_path / "b"), *command]) == 0
    steps = [json.loads(line) for line in (tmp_path / "b/metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [0, 1, 2]
    assert all("reward" in step for step in steps)  # of responses that are drawn for the logs


def test_prompts_are_those_of_the_pool():
    sim = sim_of(pool=5)
    backend = SimBackend(sim, arms_of(["minirl"]), torch.tensor([5]))
    rows = picks(5, torch.tensor([5]), 0, 4).repeat_interleave(4, dim=1)
    assert torch.equal(backend.rollout(0).groups, rows)
    assert torch.equal(backend.rollout(0).tokens[..., 0], rows)
