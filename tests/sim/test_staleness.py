import itertools

import torch

from firstorder.sim.exact import objectives
from firstorder.sim.exact.measurement import update
from firstorder.sim.exact.scene import build, engines, grow
from firstorder.sim.exact.staleness import advance, path
from firstorder.sim.model.policy import flatten, initial_weights


def setting(small, **changes):
    sim = small(lr=0.7, **changes)
    return sim, engines(sim, torch.arange(2)), initial_weights(sim, torch.tensor([0, 6]))


def test_no_steps_leave_theta_where_it_was(small):
    sim, pair, theta_old = setting(small)
    (theta,) = path(sim, pair, theta_old, 0)
    assert theta is theta_old


def test_each_step_is_plain_ascent_along_the_natural_gradient_of_the_other_prompts(small, same):
    sim, pair, theta_old = setting(small, router="sigmoid_bias")
    found = list(path(sim, pair, theta_old, 3))
    assert len(found) == 4
    other = grow(sim, others=True)
    measured = grow(sim)
    assert not any((row == measured.opening).all(-1).any() for row in other.opening)
    for before, after in itertools.pairwise(found):
        g = objectives.gradient(build(sim, other, pair, theta_old, before), "disabled")
        same(flatten({n: after[n] - before[n] for n in after if n != "bias"}), 0.7 * g, 1e-10)
        assert torch.equal(after["bias"], theta_old["bias"])


def test_the_path_raises_the_reward_of_the_prompts_it_walks_on(small):
    sim, pair, theta_old = setting(small)
    sim = sim.model_copy(update={"lr": 0.01})
    other = grow(sim, others=True)
    earned = []
    for theta in path(sim, pair, theta_old, 3):
        done = build(sim, other, pair, theta_old, theta, []).target["disabled"]
        earned.append(objectives.value(done.logp.detach(), other))
    assert (torch.stack(earned).diff(dim=0) > 0).all()


def test_the_engines_do_not_bend_a_natural_path(small):
    sim, pair, theta_old = setting(small)
    loud = engines(sim, torch.arange(5, 7), torch.full((2,), 0.9, dtype=torch.float64))
    *_, a = path(sim, pair, theta_old, 2)
    *_, b = path(sim, loud, theta_old, 2)
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_a_recipe_s_path_follows_its_own_update_at_the_policies_it_would_see(small, same, make_recipe):
    sim, pair, theta_old = setting(small)
    other = grow(sim, others=True)
    for name in ("minirl-r3", "gspo"):
        recipe = make_recipe(name, "schedule.group_size=3")
        found = list(path(sim, pair, theta_old, 2, recipe))
        for before, after in itertools.pairwise(found):
            u = update(build(sim, other, pair, theta_old, before), recipe)
            same(flatten({n: after[n] - before[n] for n in after}), 0.7 * u, 1e-10)


def test_advancing_keeps_the_selection_bias(small):
    _, _, theta = setting(small, router="group_limited")
    size = sum(w[0].numel() for n, w in theta.items() if n != "bias")
    after = advance(theta, torch.ones(2, size, dtype=torch.float64), 0.5)
    assert torch.equal(after["bias"], theta["bias"])
    assert all(torch.equal(after[n], theta[n] + 0.5) for n in theta if n != "bias")
