import pytest
import torch
from scipy import stats as scipy_stats

from firstorder.core.method.recipe import Recipe
from firstorder.core.settings import toml
from firstorder.sim.exact import objectives
from firstorder.sim.exact.fit import compare
from firstorder.sim.exact.measurement import Measurement, update
from firstorder.sim.exact.sampled import jackknife, sample_responses, sampled_edges, sampled_fits, sampled_stats
from firstorder.sim.exact.world import scatter

SPELLINGS = {str(toml.build(Recipe, toml.read(n)).router_replay) for n in toml.shipped()}
RUNNABLE = [n for n in toml.shipped() if not toml.build(Recipe, toml.read(n)).about.unsupported]


@pytest.fixture(scope="module")
def stale(small, make_scene):
    return make_scene(small(staleness=2, lr=1.0), SPELLINGS)


@pytest.fixture(scope="module")
def projections(stale):
    """∇ log π(edge) · v of every edge for three fixed directions v, by mode: `[N · V, 3]`."""
    g = torch.Generator().manual_seed(0)
    leaves = [w for w in stale.weights.values() if w.requires_grad]
    directions = [[torch.randn(w.shape, generator=g, dtype=torch.float64) for w in leaves] for _ in range(3)]

    def project(done):
        edges = torch.zeros_like(done.logp, requires_grad=True)
        rows = torch.autograd.grad(done.logp, leaves, edges, create_graph=True, materialize_grads=True)
        along = [sum((r * v).sum() for r, v in zip(rows, d, strict=True)) for d in directions]
        return torch.stack([torch.autograd.grad(a, edges, retain_graph=True)[0].flatten() for a in along], -1)

    return {mode: project(done) for mode, done in stale.target.items()}


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_exact_update_is_what_sampling_converges_to(name, stale, projections, acting):
    recipe = acting(name, "schedule.group_size=4")
    # a weight that reads its batch has its limit where batches are large; the others are unbiased at any size
    groups, batches = (800, 30) if recipe.scope == "batch" else (4, 3000)
    along = projections[str(recipe.router_replay)]
    measurement = Measurement(scene=stale, recipe=recipe)
    edges = scatter(measurement.batch.expected, stale.responses, stale.world.contexts)
    limit = sum(measurement.term_coefficients.values(), edges).flatten() @ along
    picks = sample_responses(stale, groups, 4, batches, torch.Generator().manual_seed(1))
    found = sampled_edges(measurement, picks) @ along
    error = found.std(0, correction=1) / batches**0.5
    assert ((found.mean(0) - limit).abs() < 5 * error).all()
    assert (error < 0.2 * limit.abs().max()).all()


def test_responses_are_drawn_from_the_rollout_policy_prompt_by_prompt(stale):
    picks = sample_responses(stale, 500, 8, 6, torch.Generator().manual_seed(2))
    assert picks.shape == (6, 500, 8)
    owner = stale.responses.prompt[picks]
    assert (owner == owner[..., :1]).all()
    per_prompt = torch.bincount(owner[..., 0].flatten(), minlength=2)
    assert scipy_stats.chisquare(per_prompt.numpy()).pvalue > 0.001
    seen = torch.bincount(picks.flatten(), minlength=len(stale.responses.path)).double()
    expected = torch.zeros_like(seen)
    for x in range(2):
        mine = stale.responses.prompt == x
        expected[mine] = stale.measure[0, mine] * 2 * seen[mine].sum()
    assert scipy_stats.chisquare(seen.numpy(), expected.numpy()).pvalue > 0.001


def test_the_same_generator_draws_the_same_batches(stale):
    a, b = (sample_responses(stale, 3, 2, 2, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a, b)


def test_a_sampled_batch_is_the_rows_of_the_exhaustive_one(stale, make_recipe):
    recipe = make_recipe("rspo")
    picks = sample_responses(stale, 3, 4, 2, torch.Generator().manual_seed(0))
    batch = sampled_stats(Measurement(scene=stale, recipe=recipe), picks)
    assert batch.measure is None
    assert batch.logp_theta.shape == (2, 12, 3)
    assert torch.equal(batch.mask, stale.responses.mask[picks.flatten(1)])
    assert batch.router_shift.shape == (2, 12, 3)
    rewards = stale.responses.rewards[picks]
    assert torch.equal(batch.advantage.view(2, 3, 4) > 0, rewards > rewards.mean(-1, keepdim=True))


def test_the_jackknife_of_a_mean_is_the_student_interval():
    x = torch.tensor([1.0, 4.0, 2.0, 7.0, 3.5], dtype=torch.float64)
    found = jackknife(x.mean(), (x.sum() - x) / 4)
    expected = scipy_stats.t.interval(0.95, 4, loc=x.mean().item(), scale=scipy_stats.sem(x.numpy()))
    assert (found.estimate, found.low, found.high) == pytest.approx((x.mean().item(), *expected))


def test_the_jackknife_removes_the_bias_of_a_variance():
    x = torch.tensor([1.0, 4.0, 2.0, 7.0, 3.5, 0.0], dtype=torch.float64)
    left = torch.stack([torch.cat([x[:i], x[i + 1 :]]).var(correction=0) for i in range(len(x))])
    assert jackknife(x.var(correction=0), left).estimate == pytest.approx(float(x.var(correction=1)))


def test_minibatches_of_one_rollout_share_its_scale(stale, make_recipe, same):
    recipe = make_recipe("reinforce-plus-plus")
    picks = sample_responses(stale, 3, 4, 4, torch.Generator().manual_seed(0))
    measurement = Measurement(scene=stale, recipe=recipe)
    found = sampled_stats(measurement, picks, minibatches=2).advantage
    whole = sampled_stats(measurement, picks.view(2, 6, 4)).advantage
    assert torch.equal(found, whole.view(4, 12))
    assert not torch.equal(found, sampled_stats(measurement, picks).advantage)


@pytest.mark.parametrize("name", ["dapo", "m2po", "reinforce-plus-plus"])
def test_the_interval_of_a_batch_recipe_closes_in_on_its_limit(name, stale, acting):
    recipe = acting(name, "schedule.prompts=2000")
    g = objectives.gradient(stale, "disabled")
    limit = compare(update(stale, recipe), g)
    found = sampled_fits(Measurement(scene=stale, recipe=recipe), blocks=12, batches=2)
    for key, exactly in (("gradient_error", limit.error), ("update_scale", limit.scale)):
        interval = found[key]
        width = interval.high - interval.low
        assert 0 < width < 0.2 * abs(float(exactly))
        assert interval.low < interval.estimate < interval.high
        assert abs(interval.estimate - float(exactly)) < width
