"""The parts of what is off add up to what is measured without them, in both worlds, at every minibatch."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.cli.main import run
from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe
from firstorder.core.settings import toml
from firstorder.sim.config import Sim
from firstorder.sim.exact import objectives
from firstorder.sim.exact.edges import kl
from firstorder.sim.exact.game import changes, in_order, shapley, subsets
from firstorder.sim.exact.hybrids import PARTS
from firstorder.sim.exact.measure import _scene, measure
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.split import METHOD, TARGET
from firstorder.sim.exact.steps import of_step, splits

CLOSE = 1e-10  # relative to the gradient, or to the rewards and nats that are split
RULES = ("disabled", "R2", "R3", "R3 margin=0.05", "R3 condition=0.9", "R3 gates=replayed", "R2 gates=replayed")
ROUTERS = ("softmax_topk", "topk_softmax", "sigmoid_bias", "group_limited")
METHODS = ("minirl", "grpo", "minirl-no-is", "tis", "reinforce-is", "decoupled-ppo")


def recipe(name, rule="disabled"):
    return toml.build(Recipe, toml.read(name)).model_copy(
        update={"router_replay": type(Recipe().router_replay).model_validate(rule)}
    )


def tree(**changes):
    sizes = {"vocab": 3, "horizon": 3, "prompts": 2, "experts": 4, "width": 4, "expert_width": 3, "lr": 1.0}
    return Sim(**sizes | {"numerics": {"kind": "noise", "scale": 0.3}} | changes)


def graph(**changes):
    sizes = {"world": "graph", "task": "chain", "prompts": 2, "vocab": 6, "horizon": 24, "width": 8, "expert_width": 4}
    more = {"experts": 4, "lr": 1.0, "shared": 0.8, "numerics": {"kind": "noise", "scale": 0.3}}
    return Sim(**sizes | more | changes)


def nats(scene, logp):
    return float((scene.share * kl(scene.mu_old.logp, logp)).sum())


def check_adds_up(found, method, sim):
    """Parts add up, and to what `measure` says of a scene that it builds by itself."""
    one = Measurement(scene=_scene(method, sim.model_copy(update={"staleness": found.staleness}), 1), recipe=method)
    scene, known = one.scene, objectives.values(one.scene, one.mode)
    near = {mode: nats(scene, target.logp.detach()) for mode, target in scene.target.items()}
    totals = {
        "value": float(known.j_seq_natural - known.j_mu),
        "error": float(known.error + known.replay_bias),
        "kl": near["disabled"],
    }
    targets = dict.fromkeys(("value", "error"), float(known.replay_bias))
    targets["kl"] = near["disabled"] - near[one.mode]
    for name in ("value", "error", "kl", "gradient"):
        whole = getattr(found, name)
        assert sum(part.value for part in whole.parts.values()) == pytest.approx(whole.total, abs=CLOSE)
        assert sum(part.shapley for part in whole.parts.values()) == pytest.approx(whole.total, abs=CLOSE)
        for part in whole.parts.values():
            assert part.low - CLOSE <= min(part.value, part.shapley)
            assert max(part.value, part.shapley) <= part.high + CLOSE
        if name in totals:
            assert whole.total == pytest.approx(totals[name], abs=CLOSE)
            assert whole.parts[TARGET].value == pytest.approx(targets[name], abs=CLOSE)
    u, g, natural = one.update, one.gradient, one.natural_gradient
    off = found.gradient.scale * u - natural
    assert found.gradient.norm == pytest.approx(float(off.norm() / natural.norm()), rel=1e-9, abs=CLOSE)
    assert found.gradient.total == pytest.approx(float((off @ natural.T) / natural.square().sum()), abs=CLOSE)
    target = float((g - natural).norm() / natural.norm())
    assert found.gradient.parts[TARGET].norm == pytest.approx(target, rel=1e-9, abs=CLOSE)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    router=st.sampled_from(ROUTERS),
    rule=st.sampled_from(RULES),
    name=st.sampled_from(METHODS),
    staleness=st.integers(0, 2),
)
def test_parts_add_up_on_a_tree(seed, router, rule, name, staleness):
    sim, method = tree(seed=seed, router=router), recipe(name, rule)
    ((found,),) = splits([method], sim, [staleness])
    check_adds_up(found, method, sim)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    router=st.sampled_from(ROUTERS),
    rule=st.sampled_from(RULES),
    name=st.sampled_from(METHODS),
    staleness=st.integers(0, 2),
)
def test_parts_add_up_where_contexts_merge(seed, router, rule, name, staleness):
    sim, method = graph(seed=seed, router=router), recipe(name, rule)
    ((found,),) = splits([method], sim, [staleness])
    check_adds_up(found, method, sim)


@settings(deadline=None)
@given(values=st.lists(st.floats(-1, 1), min_size=8, max_size=8))
def test_orders_are_averaged_as_they_are_written_out(values):
    from itertools import permutations

    parts = ("a", "b", "c")
    worth = {swapped: torch.tensor([v, -2 * v]) for swapped, v in zip(subsets(parts), values, strict=True)}
    orders = [in_order(worth, order) for order in permutations(parts)]
    for part in parts:
        every = torch.stack([one[part] for one in orders])
        torch.testing.assert_close(shapley(worth, parts, part), every.mean(0))
        assert torch.equal(changes(worth, parts, part).amax(0), every.amax(0))
        assert torch.equal(changes(worth, parts, part).amin(0), every.amin(0))


def test_methods_without_bias_have_no_part_of_their_own_and_the_others_do():
    methods = [recipe(name) for name in ("minirl", "reinforce-is", "grpo", "minirl-length-norm")]
    (row,) = splits(methods, tree(seed=71))
    sizes = [each.gradient.parts[METHOD].norm for each in row]
    assert max(sizes[:2]) < CLOSE
    assert min(sizes[2:]) > 1e-3
    assert row[0].gradient.scale == pytest.approx(1 / (1 - 1 / methods[0].schedule.group_size))


def test_identical_engines_without_staleness_leave_nothing_of_minirl():
    ((found,),) = splits([recipe("minirl")], tree(seed=72, numerics={"kind": "exact"}))
    assert found.gradient.norm < CLOSE
    assert found.value.total == found.error.total == found.kl.total == 0


def test_many_recipes_and_minibatches_are_what_each_is_alone():
    """What is shared changes no number."""
    methods, sim = [recipe("minirl"), recipe("minirl", "R3"), recipe("grpo", "R2")], graph(seed=73)
    rows = splits(methods, sim, [0, 1, 3])
    for staleness, row in zip((0, 1, 3), rows, strict=True):
        for method, together in zip(methods, row, strict=True):
            assert together == splits([method], sim, [staleness])[0][0]


def test_a_step_has_a_split_for_each_of_its_minibatches_and_for_the_staleness_that_is_measured():
    method = recipe("minirl-r3-n4", "R3")
    assert [each.staleness for each in of_step(method, tree(seed=74, staleness=6))] == [0, 1, 2, 3, 6]
    all_there_are = tree(seed=74, prompts=4)
    assert all_there_are.available == 4
    assert [each.staleness for each in of_step(method, all_there_are)] == [0]


def test_the_rollout_of_a_split_may_be_pruned_misread_or_drawn_by_batch():
    cases = (
        {"min_p": 0.2},
        {"top_p": 0.8},
        {"top_p": 0.8, "sampling_mask": "ignored"},
        {"reading_noise": 0.1, "draws": 4},
    )
    for more in (*cases, {"missing": 0.3}):
        sim, method = tree(seed=75, staleness=1, **more), recipe("minirl", "R3")
        check_adds_up(splits([method], sim, [1])[0][0], method, sim)
    sim = tree(seed=75, numerics={"kind": "batch"}, draws=3)
    ((found,),) = splits([recipe("minirl", "R3")], sim)
    assert sum(part.value for part in found.gradient.parts.values()) == pytest.approx(found.gradient.total, abs=CLOSE)
    assert found.value.total == pytest.approx(
        measure(recipe("minirl"), sim)["j_seq"] - measure(recipe("minirl"), sim)["j_mu"], abs=CLOSE
    )


def test_an_update_that_is_sampled_is_not_split_but_the_rest_is():
    ((found,),) = splits([recipe("gspo")], graph(seed=76))
    assert found.gradient is None
    assert found.value.total != 0


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ConfigError, match="fresh draws at every token; unset it"):
        splits([recipe("minirl")], tree(numerics={"kind": "noise", "fresh": True}))
    with pytest.raises(ConfigError, match="moves theta by one recipe's update, got several; use natural"):
        splits([recipe("minirl"), recipe("grpo")], tree(direction="recipe"), [1])


def test_a_path_along_the_recipe_s_own_update_is_split_as_it_is_measured():
    sim, method = tree(seed=77, direction="recipe"), recipe("minirl", "R3")
    check_adds_up(splits([method], sim, [2])[0][0], method, sim)


def test_the_command_prints_and_writes_the_splits(tmp_path, capsys):
    file = tmp_path / "split.json"
    small = ["sim.vocab=3", "sim.horizon=3", "sim.width=4", "sim.prompts=2"]
    command = ["measure", "minirl-r3-n2", "--split", "--json", str(file), *(w for s in small for w in ("--set", s))]
    assert run(command) == 0
    out = capsys.readouterr().out
    assert "split at staleness 0" in out
    assert all(part in out for part in (*PARTS, TARGET, METHOD))
    written = json.loads(file.read_text())["result"]["split"]
    assert [each["staleness"] for each in written] == [0, 1]
    assert written[0]["gradient"]["parts"].keys() == {*PARTS, TARGET, METHOD}
    assert run([word for word in command if word != "--split"]) == 0
    assert "split" not in json.loads(file.read_text())["result"]


def test_a_measurement_shows_its_splits_as_rows_and_as_a_figure():
    import firstorder as fo

    found = fo.measure("minirl-r3-n2", split=True, vocab=3, horizon=3, width=4, prompts=2)
    rows = found.split_records()
    assert len(rows) == 2 * (6 + 3 * 5)
    assert {row["quantity"] for row in rows} == {"gradient", "value", "error", "kl"}
    assert len(found.plot_split(1).axes) == 5
    with pytest.raises(ConfigError, match="no split at staleness 5, only at 0, 1; measure with split=True"):
        found.plot_split(5)
    assert fo.measure("minirl", vocab=3, horizon=3, width=4, prompts=2).split is None
