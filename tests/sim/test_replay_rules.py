"""Every way to replay, against a slow second implementation, and what is sampled against what is expected of it."""

import pytest
import torch

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe
from firstorder.core.quantities import means
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm
from firstorder.core.training.loop import train
from firstorder.sim.config import Sim
from firstorder.sim.exact import objectives
from firstorder.sim.exact.measure import measure
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.replay import moments
from firstorder.sim.exact.tree import episodes
from firstorder.sim.exact.world import gather
from firstorder.sim.training.backend import SimBackend

RTOL = 1e-10
STALE = {"staleness": 2, "lr": 1.0}
RULES = {
    "R3 margin=0.05": STALE,
    "R3 condition=0.7": STALE,
    "R3 margin=1.0 condition=0.5": STALE | {"router": "topk_softmax"},
    "R2 condition=0.9": {"router": "sigmoid_bias", "staleness": 3, "lr": 5.0, "seed": 2},
    "R2 margin=0.1": STALE,
    "R3 gates=replayed": STALE,
    "R2 gates=replayed": STALE,
    "R3 gates=replayed margin=0.2": {"router": "top1", "top_k": 1, "staleness": 1},
    "R3 condition=0.6": {
        "router": "group_limited",
        "experts": 6,
        "groups": 3,
        "limited_groups": 2,
        "numerics": {"kind": "noise", "scale": 0.5},
    },
    "R3": STALE | {"missing": 0.3},
    "R3 gates=replayed condition=0.0": STALE | {"missing": 0.4, "missing_prefix": 1},
}


def replaying(spelling, name="minirl-no-clip", *changes):
    tree = toml.override(toml.read(name), changes)
    return toml.build(Recipe, tree | {"router_replay": spelling})


@pytest.mark.parametrize("spelling", RULES)
def test_every_replay_is_the_policy_of_a_second_implementation(spelling, small, make_scene, make_lab, pairs_of, same):
    recipe, sim = replaying(spelling), small(**RULES[spelling])
    mode = str(recipe.router_replay)
    scene, lab = make_scene(sim, [mode]), make_lab(sim)
    for done, engine in ((scene.old[mode], lab.old[mode]), (scene.target[mode], lab.target[mode])):
        found = gather(done.logp.detach(), scene.responses)[0]
        expected = torch.zeros_like(found)
        for row, pair in enumerate(pairs_of(scene.world)):
            expected[row, : len(pair[1])] = torch.tensor(engine.plain(pair), dtype=torch.float64)
        same(found, expected, RTOL)
    plain = scene.target["disabled"].logp.detach()
    assert not torch.allclose(scene.target[mode].logp.detach(), plain)
    same(objectives.gradient(scene, mode)[0], lab.gradient(mode), RTOL)


@pytest.mark.parametrize("spelling", ["R3 margin=0.05", "R3 condition=0.7", "R3 gates=replayed"])
def test_a_rule_is_measured_and_says_what_it_did(spelling, small):
    result = measure(replaying(spelling), small(**STALE))
    rows = result["replay"]
    assert rows["rows_replayed"] + rows["rows_replaced"] + rows["rows_live"] == pytest.approx(1.0)
    assert (rows["rows_replaced"] > 0) == ("gates" not in spelling)
    assert 0 < rows["rows_changed"] < 1
    assert abs(result["replay_bias"]) > 1e-6


@pytest.mark.parametrize("mode", ["R2", "R3"])
def test_the_ends_of_a_rule_are_replay_and_none(mode, small, make_scene):
    ends = {f"{mode} condition=1.0": "disabled", f"{mode} margin=1e-300": "disabled", f"{mode} margin=1000.0": mode}
    scene = make_scene(small(**STALE), ["disabled", mode, *ends])
    for spelling, plain in ends.items():
        assert torch.equal(scene.target[spelling].logp, scene.target[plain].logp)


def test_all_rows_missing_but_few_is_close_to_none_and_none_missing_is_r3(small, make_scene):
    sim = small(**STALE)
    whole = make_scene(sim, ["R3"])
    assert whole.sent is whole.mu_old.routes
    shares = []
    for share in (0.2, 0.5, 0.9):
        scene = make_scene(sim.model_copy(update={"missing": share}), ["R3"])
        shares.append(float(means(moments(scene, "R3"))["replay/routes_missing"]))
        assert float(means(moments(scene, "R3"))["replay/rows_live"]) == pytest.approx(shares[-1])
    assert 0 < shares[0] < shares[1] < shares[2] < 1


def test_constant_gates_leave_the_router_no_gradient(small, make_scene):
    scene = make_scene(small(**STALE), ["R3", "R3 gates=replayed"])
    for mode, moves in (("R3", True), ("R3 gates=replayed", False)):
        logp = scene.target[mode].logp
        (slope,) = torch.autograd.grad(logp[..., 1].sum(), scene.weights["router"], retain_graph=True)
        assert bool(slope.any()) == moves


def test_replaying_one_s_own_gates_is_replaying_one_s_own_experts(small, make_scene):
    scene = make_scene(small(), ["R2", "R2 gates=replayed"])
    assert torch.equal(scene.target["R2 gates=replayed"].logp, scene.target["R2"].logp)


SIM = Sim(
    vocab=4,
    horizon=3,
    prompts=3,
    layers=2,
    experts=4,
    width=6,
    expert_width=4,
    evaluate_every=0,
    numerics={"kind": "noise", "scale": 0.3},
)
LONG = {"world": "graph", "task": "chain", "horizon": 6, "positions": 4, "prompts": 3, "vocab": 4}
TRAINED = ["R3 margin=0.05", "R3 condition=0.7", "R3 gates=replayed", "R2 gates=replayed", "R2 condition=0.9"]


@pytest.mark.parametrize("world", ["tree", "graph"])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_every_replay_trains_and_its_receipts_are_what_is_expected_of_them(world, missing):
    """Several replays side by side, each member by its own rule; the first rollout's rows against their expectation."""
    sim = Sim(**(SIM.model_dump() | (LONG if world == "graph" else {}) | {"missing": missing}))
    arms = [Arm(recipe=replaying(s, "minirl", *SCHEDULE), members=1) for s in TRAINED]
    backend = SimBackend(sim, tuple(arms), torch.tensor([3] * len(arms)))
    logs = []
    train(tuple(arms), backend, on_step=logs.append)
    assert len(logs) == 3
    replaced = torch.stack([log.receipts["replay/rows_replaced"] for log in logs])
    assert (replaced[:, [0, 1]] > 0).all()
    assert not replaced[:, [2, 3]].any()
    for log in logs:
        total = sum(log.receipts[f"replay/rows_{kind}"] for kind in ("replayed", "replaced", "live"))
        torch.testing.assert_close(total, torch.ones_like(total))
        assert (log.receipts["replay/rows_changed"][:3] > 0).all()


SCHEDULE = ("schedule.steps=3", "schedule.prompts=8", "schedule.group_size=4", "schedule.minibatches=4")


@pytest.mark.parametrize("spelling", ["R3 margin=0.05", "R3 condition=0.7", "R3 gates=replayed"])
def test_both_worlds_train_the_policy_that_is_measured(spelling, same):
    """log π_old of a sampled batch is that of the exact pass, at every token."""
    sim = Sim(**(SIM.model_dump() | {"missing": 0.2}))
    recipe = replaying(spelling, "minirl", *SCHEDULE)
    backend = SimBackend(sim, (Arm(recipe=recipe, members=1),), torch.tensor([0]))
    batch = backend.rollout(0)
    scored, _ = backend.score(batch)
    from firstorder.sim.exact.scene import build, engines, world_of

    world = world_of(sim, torch.arange(sim.training_prompts))
    scene = build(sim, world, engines(sim, torch.tensor([0])), backend.weights, modes=[spelling])
    told = episodes(world, scene.responses)
    exact = gather(scene.old[spelling].logp, scene.responses)[0]
    known = {}
    for row in range(len(told.tokens)):
        key = tuple(told.tokens[row].tolist())
        known[key, tuple(told.mask[row].tolist())] = exact[row][scene.responses.mask[row]]
    for row in range(batch.tokens.shape[1]):
        key = tuple(batch.tokens[0, row].tolist()), tuple(batch.mask[0, row].tolist())
        same(scored.logp_old[0, row][batch.mask[0, row]], known[key], RTOL)


@pytest.mark.parametrize("spelling", ["R3 margin=0.05", "R3 condition=0.7", "R3 gates=replayed"])
def test_the_tree_and_the_graph_measure_the_same(spelling, make_scene):
    settings = SIM.model_dump() | LONG | {"horizon": 3, "missing": 0.2, **STALE}
    found = {}
    for world in ("tree", "graph"):
        sim = Sim(**(settings | {"world": world}))
        scene = make_scene(sim, [spelling])
        found[world] = Measurement(scene=scene, recipe=replaying(spelling))
    for name in ("update", "gradient", "natural_gradient"):
        torch.testing.assert_close(getattr(found["tree"], name), getattr(found["graph"], name), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"missing": 1.0}, "missing"),
        ({"missing_prefix": 2}, "must leave the last of sim.prompt_length = 2"),
        ({"missing_prefix": 1} | LONG, "changes nothing after the prefix"),
    ],
)
def test_rows_that_cannot_be_missing_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        toml.build(Sim, SIM.model_dump() | changes)


@pytest.mark.parametrize("text", ["R4", "R3 margin=x", "R3 colour=1", "", "R3 condition=2", "R3 margin"])
def test_a_replay_that_is_no_spelling_is_refused(text):
    with pytest.raises(ConfigError):
        replaying(text)


@pytest.mark.parametrize("text", ["R3", "disabled", "R2 condition=0.25", "R3 gates=replayed margin=1e-05"])
def test_a_replay_is_read_as_it_is_written(text):
    assert str(replaying(text).router_replay) == text
