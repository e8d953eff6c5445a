import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from firstorder.core.errors import DataError
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Numerics
from firstorder.sim.exact.edge_variance import edge_variance
from firstorder.sim.exact.edges import kl
from firstorder.sim.exact.fit import compare
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.pairs import moments
from firstorder.sim.exact.scene import build, engines, grow
from firstorder.sim.exact.scores import directions
from firstorder.sim.studies import advice
from firstorder.sim.studies.study import Plan
from firstorder.sim.trials import atlas as maps
from firstorder.sim.trials import course, ruled
from firstorder.sim.trials.atlas import UPDATES, Point, between, choose
from firstorder.sim.trials.options import OPTIONS, REPLAYS
from firstorder.sim.trials.rated import groups, rated
from firstorder.sim.trials.regime import Regime

RECORDS = Path(__file__).parents[1] / "records"
NOISY = Numerics(kind="noise", router_scale=0.05, head_scale=0.02)
REGIME = Regime(kl=1.5e-3, flips=0.1, horizon=64, right=2, step=1e-3)
SOME = (
    "none, theta/old, clip",
    "R2, theta/mu, clip",
    "R3, truncated, clip",
    "R3 condition=0.9, theta/mu, no clip",
    "cispo",
    "icepop",
)
POINT = Point(kl=1.5e-3, flips=0.1, updates=4, horizon=8192, group=16, entropy=0.65, step=1e-4)


@pytest.fixture(scope="module")
def stale():
    """A scene of two members, three updates stale, with every replay."""
    seeds = torch.arange(2)
    sim = REGIME.sim(range(2)).model_copy(update={"numerics": NOISY})
    world, pair, start = grow(sim), engines(sim, seeds), starting_weights(sim, seeds)
    *_, theta = course.course(sim, world, pair, start, seeds, 0.02, 4)
    modes = {str(option.recipe(16).router_replay) for option in OPTIONS.values()}
    return sim, world, build(sim, world, pair, start, theta, modes)


def member(stale, number):
    """The same scene with one of its members."""
    sim, world, _ = stale
    seeds = torch.tensor([number])
    pair, start = engines(sim, seeds), starting_weights(sim, seeds)
    *_, theta = course.course(sim, world, pair, start, seeds, 0.02, 4)
    return build(sim, world, pair, start, theta, {str(option.recipe(16).router_replay) for option in OPTIONS.values()})


@pytest.mark.parametrize("horizon", [1, 2, 3, 7, 64, 4096])
def test_moments_are_those_of_a_recursion_over_time(stale, horizon):
    _, world, scene = stale
    world = replace(world, horizon=horizon)
    logp = scene.mu_old.logp
    found = moments(world, logp)
    x = torch.linspace(-1, 1, world.contexts * world.vocab, dtype=torch.float64).view(1, world.contexts, world.vocab)
    apart = x.view(world.prompts, -1)
    for number, one in enumerate(logp.exp()):
        squares = world.squares(one[None], x)[0]
        mine = torch.einsum("xe,xlef,xf->lx", apart, found.pairs[number], apart)
        torch.testing.assert_close(mine, squares, rtol=1e-10, atol=1e-12)
    visits = found.single.sum(2).view(*logp.shape).sum(-1) / world.prompts
    torch.testing.assert_close(visits, world.visits(logp.exp()), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.chance.sum(-1), torch.ones(2, world.prompts, dtype=torch.float64))


def test_recipes_are_rated_as_each_is_measured_alone(stale):
    _, world, both = stale
    recipes = [option.recipe(16) for option in OPTIONS.values()]
    of_mu = moments(world, both.mu_old.logp)
    found = rated(both, recipes, of_mu, groups(world.levels, of_mu, recipes, (4, 16)))
    scene = member(stale, 1)
    for name in SOME:
        place = list(OPTIONS).index(name)
        recipe = recipes[place]
        one = Measurement(scene=scene, recipe=recipe)
        fit = compare(one.update, one.natural_gradient)
        variance = edge_variance(one, directions(scene, one.mode))
        assert float(found.cosine[1, place, 1]) == pytest.approx(float(fit.cosine), abs=1e-9)
        assert float(found.error[1, place, 1]) == pytest.approx(float(fit.error), abs=1e-7)
        assert float(found.noise[1, place, 1]) == pytest.approx(float(variance / one.update.square().sum()), rel=1e-9)
        assert float(found.sequence_ess[place, 1]) == pytest.approx(float(one.effective_share), rel=1e-9)
    one = Measurement(scene=scene, recipe=OPTIONS["none, theta/mu, no clip"].recipe(4))
    variance = edge_variance(one, directions(scene, one.mode)) / one.update.square().sum()
    assert float(found.noise[0, 0, 1]) == pytest.approx(float(variance), rel=1e-9)


def test_options_differ_in_more_than_their_names(stale):
    recipes = [option.recipe(16) for option in OPTIONS.values()]
    assert len({repr(recipe.model_dump(exclude={"about"})) for recipe in recipes}) == len(recipes)
    assert {option.replay for option in OPTIONS.values()} >= set(REPLAYS)


def test_draws_have_the_mean_and_the_variance_of_a_minibatch(stale):
    sim, world, _ = stale
    seeds = torch.tensor([1])
    scene = build(sim, world, engines(sim, seeds), starting_weights(sim, seeds), modes=[])
    draw = course.Draw.of(world, scene.mu_old.logp, seeds)
    one = Measurement(scene=scene, recipe=OPTIONS["none, theta/old, no clip"].recipe(course.GROUP))
    mean = course.vjp(scene.target["disabled"], draw.mean.view_as(scene.mu_old.logp), scene.weights)
    torch.testing.assert_close(mean, one.update, rtol=1e-9, atol=1e-12)
    scores = torch.stack(
        [
            course.vjp(scene.target["disabled"], edge.view_as(scene.mu_old.logp), scene.weights)[0]
            for edge in torch.eye(scene.mu_old.logp.numel(), dtype=torch.float64)
        ]
    ).view(world.prompts, -1, mean.shape[1])
    spread = sum(float((draw.root[0, x].T @ scores[x]).square().sum()) for x in range(world.prompts))
    each = torch.einsum("xe,xep->xp", draw.mean[0], scores) * world.prompts
    prompts = float((each - each.mean(0)).square().sum(1).mean())  # which prompt a group has is not drawn
    assert spread * course.BATCH == pytest.approx(
        float(edge_variance(one, directions(scene, one.mode))) - prompts, rel=1e-8
    )
    assert not torch.equal(draw(0), draw(1))
    assert torch.equal(draw(1), course.Draw.of(world, scene.mu_old.logp, seeds)(1))


def test_the_first_update_moves_by_the_step_that_is_asked_for(stale):
    sim, world, _ = stale
    seeds = torch.arange(2)
    pair, start = engines(sim, seeds), starting_weights(sim, seeds)
    old, moved = (
        world.run(course.load(theta, pair.pi, sim)).logp.detach()
        for theta in course.course(sim, world, pair, start, seeds, 1e-3, 2)
    )
    visits = world.visits(old.exp())
    found = (visits * kl(old, moved)).sum(-1) / visits.sum(-1)
    torch.testing.assert_close(found, torch.full((2,), 1e-3, dtype=torch.float64), rtol=0.05, atol=0.0)


def test_the_shipped_map_is_what_its_cells_measure():
    atlas = maps.read()
    key = min(atlas.cells, key=lambda key: atlas.distance(POINT, key))
    one = atlas.cells[key]
    regime = Regime(**{name: one[name] for name in ("kl", "flips", "horizon", "right", "step")})
    numerics = Numerics(kind="noise", router_scale=one["router_scale"], expert_scale=0.0, head_scale=one["head_scale"])
    seeds = range(atlas.seeds[0], atlas.seeds[-1] + 1)
    again = advice.numbers(regime, numerics, seeds, 2)
    for name in ("error", "cosine", "ess", "score", "score_4", "score_64"):
        fresh, kept = (torch.tensor(each[name][:2], dtype=torch.float64) for each in (again, one))
        torch.testing.assert_close(fresh, kept, rtol=0, atol=1e-9)
    assert again["kl_replayed"] == pytest.approx(one["kl_replayed"], rel=1e-8)


def test_the_shipped_map_is_that_of_the_record():
    record = json.loads((RECORDS / "studies/map.json").read_text())
    assert json.loads(maps.SHIPPED.read_text()) == record["measured"]["map"], "run `make map`"
    assert maps.read().rows() == record["rows"]


def test_steps_are_of_the_size_of_updates_of_stable_training():
    sizes = json.loads((RECORDS / "studies/map.json").read_text())["measured"]["steps"]
    for (rate, size), step in zip(sizes.items(), advice.STEPS, strict=True):
        assert abs(math.log(size / step)) < math.log(2), rate


def test_a_point_on_a_cell_is_that_cell_and_between_two_a_mean():
    atlas = maps.read()
    key = next(iter(atlas.cells))
    right, horizon, kl_, flips, step = key
    entropy = next(h for h, r in atlas._entropies.items() if r == right)
    there = Point(kl=kl_, flips=flips, updates=2, horizon=horizon, group=16, entropy=entropy, step=step)
    assert atlas.corners(there) == [(key, 1.0)]
    name = atlas.options[0]
    assert atlas.numbers(there)[name].error == atlas.cells[key]["error"][UPDATES.index(2)][0]
    three = atlas.numbers(replace(there, updates=3))[name].error
    low, high = (atlas.numbers(replace(there, updates=n))[name].error for n in (2, 4))
    assert min(low, high) <= three <= max(low, high)
    assert sum(weight for _, weight in atlas.corners(POINT)) == pytest.approx(1.0)


def test_a_point_beyond_the_map_is_said_to_be():
    atlas = maps.read()
    assert set(atlas.outside(replace(POINT, kl=1.0, updates=64))) == {"kl", "updates"}
    assert not atlas.outside(POINT)
    assert sum(weight for _, weight in atlas.corners(replace(POINT, kl=1e-6, flips=1.0))) == pytest.approx(1.0)


def test_where_no_cell_is_around_a_point_the_nearest_is_taken():
    atlas = maps.read()
    lonely = replace(POINT, horizon=512, step=1e-3)
    assert not atlas.around(lonely)
    assert atlas.corners(lonely) == [(atlas.nearest(lonely), 1.0)]


def test_axes_are_logarithmic_but_for_entropy():
    assert between([1.0, 4.0], 2.0, "kl") == [(1.0, 0.5), (4.0, 0.5)]
    assert between([1.0, 4.0], 2.5, "entropy") == [(1.0, 0.5), (4.0, 0.5)]
    assert between([1.0, 4.0], 9.0, "kl") == [(4.0, 1.0)]


def test_of_options_that_are_tied_the_simplest_is_chosen():
    atlas = maps.read()
    simple, lead = (
        replace(atlas.numbers(POINT)[name], scores=s)
        for name, s in zip(atlas.options, ((0.5, 0.5), (0.9, 0.2)), strict=False)
    )
    assert choose({"a": lead, "b": simple}).chosen is simple
    ahead = replace(lead, scores=(0.9, 0.8))
    assert choose({"a": ahead, "b": simple}).chosen is ahead


def test_rules_say_what_the_records_hold():
    claims = {
        each["id"]: each["measured"]["conditions"]
        for each in json.loads((RECORDS / "training.json").read_text())["claims"]
        if "conditions" in each["measured"]
    }
    said = " ".join(rule.found(POINT) for rule in ruled.RULES)

    def shown(claim, condition, difference, sign=1):
        found = claims[claim][condition]["differences"][difference]
        low, high = sorted((sign * found["low"], sign * found["high"]))
        return f"{sign * found['value']:.2f} [{low:.2f}, {high:.2f}]"

    assert (
        shown("training-long-off-policy", "t128-j0.5-noise0.1-n16-lr0.01-u128-p8-sampled", "clip alone - neither")
        in said
    )
    assert shown("training-long-off-policy", "t128-j0.5-noise0.1-n8-lr0.01-u64-p8", "clip alone - neither", -1) in said
    assert shown("training-stale", "published-n64-lr6e-03-t3-terse", "lead of the clip") in said
    assert (
        shown("training-long-is", "t128-j0.15-noise0.1-n1-lr0.002-u60-p16-evaluate_every-10", "minirl - minirl-no-is")
        in said
    )
    assert "beyond which" in ruled.RULES[0].found(replace(POINT, kl=0.06, horizon=700))
    assert "short of which" in ruled.RULES[0].found(POINT)


def test_rules_leave_out_what_training_is_against():
    numbers = maps.read().numbers(POINT)
    left = ruled.allowed(numbers, POINT)
    assert not any(each.option.correction == "theta/old" or each.option.clip == "no clip" for each in left.values())
    assert len(ruled.allowed(numbers, replace(POINT, updates=1))) > len(left)


def test_a_study_keeps_its_cells_and_finds_them_again(tmp_path, monkeypatch):
    shipped = list(maps.read().cells.values())
    asked = []

    def cell(regime, seeds):
        asked.append(regime)
        return {
            **shipped[len(asked)],
            "flips": regime.flips,
            "kl": regime.kl,
            "horizon": regime.horizon,
            "fits": len(asked) != 2,
        }

    monkeypatch.setattr(advice, "cell", cell)
    monkeypatch.setattr(advice, "_sizes", lambda seeds: {})
    plan = Plan(folder=tmp_path, seeds=range(500, 506), quick=True)
    found = advice.STUDY.answer(plan)
    assert len(asked) == 4
    assert found == advice.STUDY.answer(plan)
    assert len(asked) == 4
    assert found.headline.startswith("3 of 4 cells exist")
    assert len(found.rows) == 3 * len(UPDATES)
    assert len(found.measured["left_out"]) == 1


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"seeds": [1], "options": ["a"], "cells": []}'])
def test_a_damaged_map_is_refused(text):
    with pytest.raises(DataError, match="the file"):
        maps.parse(text, "the file")
    with pytest.raises(DataError, match="holds no map"):
        maps.read(Path("nowhere.json"))
