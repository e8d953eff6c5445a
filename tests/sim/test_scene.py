import pytest
import torch

from firstorder.sim.exact import world
from firstorder.sim.exact.advantages import reward_chances
from firstorder.sim.exact.forward import Routes
from firstorder.sim.exact.measure import measure
from firstorder.sim.exact.measurement import token_stats
from firstorder.sim.exact.scene import MODES


def numbers(result, prefix=""):
    found = {}
    for key, value in result.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            found[prefix + key] = value
    return found


@pytest.mark.parametrize("name", ["minirl-r3", "gspo", "dapo", "m2po", "trm", "trm-avg", "rspo"])
def test_responses_in_chunks_add_up_to_all_of_them(name, small, make_recipe, monkeypatch):
    recipe, sim = make_recipe(name, "rejection.high=0.3") if "trm" in name else make_recipe(name), small(staleness=1)
    whole = numbers(measure(recipe, sim))
    monkeypatch.setattr(world, "CHUNK_TOKENS", 20)
    assert numbers(measure(recipe, sim)) == pytest.approx(whole, rel=1e-9, abs=1e-14)


def test_parts_of_a_scene_hold_every_response_once(small, make_scene, monkeypatch):
    whole = make_scene(small())
    monkeypatch.setattr(world, "CHUNK_TOKENS", 12)
    parts = list(whole.parts())
    assert [len(p.responses) for p in parts] == [4] * 7 + [2]
    for name in ("path", "mask", "prompt", "rewards"):
        found = torch.cat([getattr(p.responses, name) for p in parts])
        assert torch.equal(found, getattr(whole.world.every, name))
    assert torch.equal(torch.cat([p.measure for p in parts], -1), whole.measure)
    assert torch.equal(torch.cat([p.probability("R3") for p in parts], -1), whole.probability("R3"))


def test_every_target_uses_the_routes_of_its_mode(small, make_scene):
    found = make_scene(small(staleness=1, lr=2.0))
    given = {"R2": found.old["disabled"].routes, "R3": found.mu_old.routes}
    for mode, routes in given.items():
        for done in (found.old[mode], found.target[mode]):
            assert done.routes.equal(routes)
    assert not torch.equal(given["R2"].contexts, given["R3"].contexts)
    assert not torch.equal(found.target["disabled"].routes.contexts, given["R2"].contexts)
    assert found.target["disabled"].routes.contexts.dtype is torch.int16
    assert isinstance(given["R2"], Routes)


@pytest.mark.parametrize("mode", MODES)
def test_a_fresh_target_equals_its_old_policy_bit_for_bit(mode, small, make_scene):
    found = make_scene(small())
    assert not found.stale
    assert torch.equal(found.target[mode].logp.detach(), found.old[mode].logp)
    assert not found.old[mode].logp.requires_grad
    assert torch.equal(found.mu.logp, found.mu_old.logp)


def test_engines_hold_the_same_weights_and_theirs_only(small, make_scene):
    exact_pair = make_scene(small(numerics={"kind": "exact"}, staleness=1))
    assert torch.equal(exact_pair.mu_old.logp, exact_pair.old["disabled"].logp)
    assert torch.equal(exact_pair.mu.logp, exact_pair.target["disabled"].logp.detach())
    assert not torch.equal(exact_pair.mu.logp, exact_pair.mu_old.logp)


def test_only_the_wanted_modes_are_run(small, make_scene):
    found = make_scene(small(), modes=["R2"])
    assert set(found.target) == {"disabled", "R2"}


def test_the_batch_of_a_scene_is_exhaustive_and_carries_what_its_recipe_reads(small, make_scene, make_recipe):
    found = make_scene(small(staleness=1))
    stats = token_stats(found, make_recipe("minirl"))
    assert stats.kl_mu is None
    assert stats.router_shift is None
    assert float(stats.measure.sum()) == pytest.approx(1.0)
    for name in ("logp_theta", "logp_old", "logp_mu"):
        values = getattr(stats, name)
        assert not values.requires_grad
        assert (values[~stats.mask] == 0).all()
        assert (values[stats.mask] < 0).all()
    assert (token_stats(found, make_recipe("trm")).kl_mu >= -1e-15).all()
    assert (token_stats(found, make_recipe("rspo")).router_shift[..., 0] > 0).all()


def test_reward_levels_and_chances_are_those_of_the_rollout_policy(small, make_scene, same):
    found = make_scene(small(reward="graded", vocab=4, horizon=2))
    levels, chance = found.world.levels, reward_chances(found)
    assert levels.tolist() == [0.0, 0.5, 1.0]
    for x in range(2):
        for n, level in enumerate(levels):
            inside = (found.responses.prompt == x) & (found.responses.rewards == level)
            same(chance[0, x, n], 2 * found.measure[0, inside].sum())
