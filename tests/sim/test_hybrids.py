"""Hybrid policies against the slow reference, and the splits that are made of them."""

import copy
import math

import pytest
import torch

from firstorder.core.method.recipe import RouterReplay
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.exact import objectives
from firstorder.sim.exact.game import subsets
from firstorder.sim.exact.hybrids import PARTS, hybrids, hybrids_at_start, start
from firstorder.sim.exact.scene import engines, grow
from firstorder.sim.exact.split import Way, split
from firstorder.sim.exact.staleness import path

NUMERICS, GATES, FLIPS, STALENESS = PARTS


@pytest.fixture(scope="session")
def make_way():
    """The way to the target of a mode, and to the natural one."""

    def make(sim, mode="disabled"):
        theta_old, pair = starting_weights(sim, torch.tensor([sim.seed])), engines(sim, torch.arange(1))
        first = start(sim, grow(sim), pair, theta_old, [mode])
        *_, theta = path(sim, pair, theta_old, sim.staleness)
        scene = first.at(theta) if sim.staleness else first.scene

        def way(mode):
            found = hybrids(first, scene, mode, hybrids_at_start(first, mode))
            return Way(start=first, scene=scene, mode=mode, passes=found)

        return way(mode), way("disabled")

    return make


def slow_hybrids(reference, lab, mode):
    """Every hybrid by the slow engine: an arithmetic at some weights with experts and gates given at every token."""
    sim, theta_old, rule = lab.sim, lab.mu.weights, RouterReplay.model_validate(mode)
    at_old, at_theta = lab.old[mode], lab.target[mode]

    def source(swapped, own, weights, experts):
        """The engine whose gates are given."""
        if {FLIPS, GATES} <= swapped:
            return own
        if GATES not in swapped:
            return reference.Engine(sim, theta_old, sim.numerics, replay=experts)
        if rule.gates == "replayed" and rule.mode == "R3":
            return lab.mu
        of = theta_old if rule.gates == "replayed" else weights
        return reference.Engine(sim, of, sim.training_numerics, replay=experts)

    def engine(swapped):
        own, weights = (at_theta, lab.weights) if STALENESS in swapped else (at_old, theta_old)
        experts = own.experts if FLIPS in swapped else lab.mu.experts
        numerics = sim.training_numerics if NUMERICS in swapped else sim.numerics
        gates = source(swapped, own, weights, experts).gates
        return reference.Engine(sim, weights, numerics, replay=experts, gates=gates)

    return {swapped: engine(swapped) for swapped in subsets(PARTS)}


DIFFER = {
    "disabled": 14,
    "R2": 14,
    "R3": 8,
    "R3 margin=0.05": 14,
    "R3 condition=0.95": 14,
    "R2 gates=replayed": 14,
    "R3 gates=replayed": 4,
}
"""How many of the 16 hybrids of a mode have a J of their own, at least."""


@pytest.mark.parametrize("mode", DIFFER)
@pytest.mark.parametrize("router", ["softmax_topk", "sigmoid_bias"])
def test_every_hybrid_is_the_policy_that_a_slow_engine_makes_of_its_parts(
    mode, router, small, make_way, make_lab, reference, same
):
    sim = small(prompts=1, router=router, staleness=1, lr=1.0, seed=31, numerics={"kind": "noise", "scale": 0.4})
    way, _ = make_way(sim, mode)
    lab = make_lab(sim)
    expected = {swapped: lab.j(one) for swapped, one in slow_hybrids(reference, lab, mode).items()}
    found = way.each(way.value)
    assert found.keys() == expected.keys()
    assert len({round(j, 12) for j in expected.values()}) >= DIFFER[mode]
    for swapped, j in expected.items():
        same(found[swapped], j)


@pytest.mark.parametrize("name", ["minirl-r2", "grpo"])
def test_updates_of_hybrids_are_those_of_a_slow_laboratory_with_another_rollout(
    name, small, make_way, make_lab, make_recipe, reference, same
):
    sim = small(prompts=1, staleness=1, lr=1.0, seed=32, numerics={"kind": "noise", "scale": 0.4})
    recipe = make_recipe(name, "schedule.group_size=2")
    mode = str(recipe.router_replay)
    way, _ = make_way(sim, mode)
    lab = make_lab(sim)
    slow, found = slow_hybrids(reference, lab, mode), way.each(way.updates(recipe))
    for swapped in (frozenset({NUMERICS}), frozenset({GATES, FLIPS}), frozenset({FLIPS, STALENESS}), frozenset(PARTS)):
        other = copy.copy(lab)
        other.mu, other.caps = slow[swapped], {}
        other.chance = {p: math.exp(sum(other.mu.plain(p))) / len(lab.prompts) for p in lab.pairs}
        if STALENESS in swapped:
            other.old = lab.target
        same(found[swapped], other.update(recipe, other.advantages(recipe.advantage, 2)))


def test_the_ends_of_a_way_are_the_rollout_and_the_target(small, make_way, make_recipe, same):
    sim = small(staleness=2, lr=1.0, seed=33)
    for name in ("minirl", "minirl-r2", "minirl-r3"):
        recipe = make_recipe(name)
        way, natural = make_way(sim, str(recipe.router_replay))
        passes, scene = way.passes, way.scene
        assert passes[frozenset()] is scene.mu_old
        assert torch.equal(passes[frozenset(PARTS)].logp, scene.target[way.mode].logp)
        found = split(way, natural, recipe)
        ends = (objectives.value(p.logp, scene.world).item() for p in (scene.target["disabled"], scene.mu_old))
        assert found.value.total == pytest.approx(next(ends) - next(ends), abs=1e-14)


def test_r3_has_no_flips_and_constant_gates_none_either(small, make_way, make_recipe):
    sim = small(staleness=1, lr=1.0, seed=34, numerics={"kind": "noise", "scale": 0.4})
    bare, r3, constant = (
        split(*make_way(sim, str(recipe.router_replay)), recipe)
        for recipe in (
            make_recipe("minirl"),
            make_recipe("minirl-r3"),
            make_recipe("minirl-r3", "router_replay.gates=replayed"),
        )
    )
    for quantity in ("value", "error", "kl", "gradient"):
        parts = [getattr(one, quantity).parts for one in (bare, r3, constant)]
        none, with_r3, with_constants = ([p[FLIPS], p[GATES], p["target"]] for p in parts)
        assert none[0].value != 0 != none[1].value
        assert none[2].value == 0
        assert with_r3[0].low == with_r3[0].high == 0
        assert with_r3[1].value != 0 != with_r3[2].value
        assert with_constants[0].low == with_constants[0].high == with_constants[1].low == with_constants[1].high == 0
        assert with_constants[2].value != 0


def zero(found, *names):
    """Whether parts are 0 in every order, whatever is split."""
    parts = [
        getattr(found, quantity).parts[name] for quantity in ("value", "error", "kl", "gradient") for name in names
    ]
    return all(part.low == part.high == part.shapley == 0 for part in parts)


def test_what_cannot_act_is_nothing(small, make_way, make_recipe):
    recipe = make_recipe("minirl")

    def of(**changes):
        return split(*make_way(small(seed=35, **changes)), recipe)

    loud = {"kind": "noise", "scale": 0.4}
    assert zero(of(numerics=loud), STALENESS)
    assert not zero(of(numerics=loud), FLIPS)
    assert zero(of(numerics={"kind": "exact"}), *PARTS)
    assert zero(of(numerics={"kind": "exact"}, staleness=1, lr=1.0), NUMERICS)
    head = {"kind": "noise", "scale": 0.0, "head_scale": 0.3}
    assert zero(of(numerics=head), GATES, FLIPS)
    assert not zero(of(numerics=head), NUMERICS)
    assert zero(of(numerics=loud, top_k=1), GATES)  # one gate, of 1
    router = {"kind": "noise", "scale": 0.0, "router_scale": 0.4}
    assert zero(of(numerics=router), NUMERICS)  # its noise has no way past experts and gates that are given
    assert not zero(of(numerics=router), GATES)
