"""Cold starts: what the policy knows before the first step."""

import itertools

import pytest
import torch

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Optimizer, Recipe
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm
from firstorder.sim import coldstart, optimizer
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim
from firstorder.sim.exact import objectives
from firstorder.sim.exact.forward import run
from firstorder.sim.exact.measure import measure
from firstorder.sim.exact.scene import engines, grow
from firstorder.sim.exact.tree import plant
from firstorder.sim.exact.world import gather
from firstorder.sim.model import noise
from firstorder.sim.model.policy import flatten, initial_weights, load
from firstorder.sim.tasks import WORD_TASKS, task_of
from firstorder.sim.tasks.demonstrations import demonstrator
from firstorder.sim.tasks.task import picks
from firstorder.sim.training.backend import SimBackend

SIZES = {"vocab": 4, "horizon": 4, "width": 8, "expert_width": 8, "experts": 4, "prompts": 3}
LONG = {"horizon": 5, "pool": 4, "coldstart_steps": 25, "coldstart_lr": 0.03, "coldstart_share": 1.0}
STYLES = ("terse", "verbose", "roundabout")


def figures(sim, weights):
    """Exact J, entropy a token and mean length of the live training engine, `[3]`, for a start of one member."""
    tree = grow(sim)
    with torch.no_grad():
        logp = run(load(weights, engines(sim, torch.arange(1)).pi, sim), tree).logp
    chance = tree.visits(logp.exp())[0]
    entropy = -(logp.exp() * logp).sum(-1)[0]
    return torch.stack([objectives.value(logp, tree)[0], (chance * entropy).sum() / chance.sum(), chance.sum()])


@pytest.mark.parametrize("task", WORD_TASKS)
def test_every_style_starts_elsewhere_and_better_than_random(task):
    sim = Sim(**(SIZES | LONG), task=task, reward="binary" if task == "guess" else None)
    random = figures(sim, starting_weights(sim, torch.tensor([2])))
    found = {}
    for style in STYLES:
        one = sim.model_copy(update={"coldstart": style})
        found[style] = figures(one, starting_weights(one, torch.tensor([2])))
        assert found[style][0] > random[0] + 0.05
    assert found["terse"][2] < found["roundabout"][2] - 0.3
    assert found["terse"][2] < found["verbose"][2] - 0.3
    for a, b in itertools.combinations(found.values(), 2):
        assert ((a - b).abs() > 0.1).any()


def test_without_a_cold_start_weights_are_random():
    a, b = starting_weights(Sim(), torch.tensor([4])), initial_weights(Sim(), torch.tensor([4]))
    assert all(torch.equal(a[name], b[name]) for name in b)


@pytest.mark.parametrize(("task", "router"), [("sum", "sigmoid_bias"), ("guess", "softmax_topk")])
def test_a_member_starts_as_if_alone_and_its_copies_with_it(task, router, same):
    sim = Sim(**SIZES, task=task, router=router, coldstart="roundabout", coldstart_steps=5)
    together = starting_weights(sim, torch.tensor([7, 3, 7]))
    for place, seed in enumerate((7, 3, 7)):
        alone = starting_weights(sim, torch.tensor([seed]))
        assert list(alone) == list(together)
        for name, w in alone.items():
            same(together[name][place], w[0], 1e-10)
    random = initial_weights(sim, torch.tensor([7]))
    assert torch.equal(together["bias"][0], random["bias"][0]) if router == "sigmoid_bias" else "bias" not in together


@pytest.mark.parametrize("task", ["sum", "guess"])
def test_the_first_step_descends_the_cross_entropy_of_what_is_shown(task, same):
    """Against the tree of the same prompts: -mean log-prob of what is shown, stepped by the ensemble's optimiser."""
    sim = Sim(**SIZES, task=task, coldstart="terse", coldstart_steps=1, pool=4)
    seeds = torch.tensor([5])
    work, own = task_of(sim), noise.combine(seeds, coldstart.SALT)
    rows = picks(4, own, 0, coldstart.BATCH)
    keys = noise.combine(noise.combine(noise.mix(own)[:, None], 0), torch.arange(coldstart.BATCH))
    shown = demonstrator(work.automaton(work.prompts(torch.arange(4)).tokens), 4, "terse", sim.coldstart_share)
    tokens, mask = shown.draw(rows, keys)
    tree = plant(work, torch.arange(4))
    every = tree.every
    hit = (tokens[0][:, None] == every.tokens).all(-1) & (mask[0][:, None] == every.mask).all(-1)
    hit &= rows[0][:, None] == every.prompt
    assert (hit.sum(-1) == 1).all()
    leaves = {name: w.requires_grad_() for name, w in initial_weights(sim, seeds).items()}
    logp = gather(run(load(leaves, engines(sim, seeds).pi, sim), tree).logp, every)[0].sum(-1)
    loss = -logp[hit.long().argmax(-1)].mean()
    gradient = torch.cat([g.flatten(1) for g in torch.autograd.grad(loss, list(leaves.values()))], dim=1)
    settings = optimizer.settings([Optimizer(lr=sim.coldstart_lr)])
    start = flatten(leaves).detach()
    expected, _ = optimizer.step(start, optimizer.clip(gradient, settings)[0], optimizer.start(start), settings)
    same(flatten(starting_weights(sim, seeds)), expected, 1e-9)


def test_a_measurement_and_a_run_start_from_the_same_policy(make_recipe):
    sim = Sim(**SIZES, task="guess", coldstart="verbose", coldstart_steps=4, seed=6, numerics={"kind": "exact"})
    recipe = make_recipe("minirl", "schedule.group_size=2", "schedule.prompts=2", "schedule.minibatches=1")
    backend = SimBackend(sim, (Arm(recipe=recipe, members=2),), torch.tensor([6, 7]))
    found, expected = backend.evaluate(0), measure(recipe, sim)
    assert float(found["exact/j_mu"][0]) == pytest.approx(expected["j_mu"], rel=1e-10)
    fresh = measure(recipe, sim.model_copy(update={"coldstart": "none"}))
    assert fresh["j_mu"] != pytest.approx(expected["j_mu"], rel=1e-3)


def test_a_start_is_a_function_of_the_seed_whatever_engines_follow():
    sim = Sim(**SIZES, coldstart="terse", coldstart_steps=3)
    other = sim.model_copy(update={"training_numerics": {"kind": "bf16"}, "prompts": 2, "staleness": 1})
    a, b = (starting_weights(s, torch.tensor([1])) for s in (sim, other))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_start_is_the_same_where_gradients_are_off():
    sim = Sim(**SIZES, coldstart="terse", coldstart_steps=2)
    with torch.no_grad():
        off = starting_weights(sim, torch.tensor([1]))
    on = starting_weights(sim, torch.tensor([1]))
    assert all(torch.equal(off[name], on[name]) for name in on)
    assert not any(w.requires_grad for w in on.values())


def test_a_prompt_without_a_correct_response_is_refused():
    sim = Sim(task="program", horizon=3, coldstart="terse")
    with pytest.raises(ConfigError, match=r"raise sim\.horizon"):
        starting_weights(sim, torch.tensor([0]))
    recipe = toml.build(Recipe, toml.read("minirl"))
    with pytest.raises(ConfigError, match=r"raise sim\.horizon"):
        measure(recipe, sim)
