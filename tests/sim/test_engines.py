"""Engines whose mismatch lives: precisions on a table, noise of the head, and noise that is drawn at every token."""

import math

import pytest
import torch
from pydantic import ValidationError

from firstorder.core.errors import ConfigError
from firstorder.core.training.arms import Arm
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Numerics, Sim
from firstorder.sim.exact import objectives
from firstorder.sim.exact.edges import kl
from firstorder.sim.exact.measure import measure
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.rollout import recorded
from firstorder.sim.exact.scene import build, engines, grow
from firstorder.sim.exact.staleness import advance
from firstorder.sim.exact.world import gather, scatter
from firstorder.sim.model import noise
from firstorder.sim.model.chunks import chunked_step
from firstorder.sim.model.numerics import arithmetic
from firstorder.sim.model.policy import initial_weights, load
from firstorder.sim.model.readings import normals, of_errors
from firstorder.sim.tasks import task_of
from firstorder.sim.training.backend import SimBackend

CHAIN = {
    "world": "graph",
    "task": "chain",
    "vocab": 4,
    "prompts": 2,
    "positions": 3,
    "right": 2,
    "horizon": 4,
    "width": 4,
    "expert_width": 3,
    "experts": 4,
    "sharpness": 1.0,
    "draws": 4,
    "samples": 10_000,
}
TREE = {"vocab": 3, "horizon": 3, "prompts": 2, "width": 4, "expert_width": 3, "experts": 4, "draws": 3}
FRESH = {"numerics": Numerics(kind="noise", scale=0.5, fresh=True)}
NOISY = {"numerics": Numerics(kind="noise", scale=0.2), "reading_noise": 0.3}
PRECISIONS = {
    "bf16": Numerics(kind="bf16"),
    "fp16": Numerics(kind="fp16"),
    "fp8": Numerics(kind="fp8"),
    "fp8_block": Numerics(kind="fp8", granularity="block", block=2),
    "int8": Numerics(kind="int8"),
    "split": Numerics(kind="split", split=2),
}
SEED = torch.arange(1)


def table(numerics, weights, sim, contexts):
    """Log-probs of the rows of a table under one engine."""
    engine = load(weights, arithmetic(numerics, SEED), sim)
    return chunked_step(engine, None, contexts.features, contexts.keys, None).logp


def scene_of(sim, recipe):
    weights = starting_weights(sim, SEED)
    return build(sim, grow(sim), engines(sim, SEED), weights, modes=[recipe.router_replay.mode])


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_precision_acts_on_a_table_and_its_mismatch_moves_with_the_weights(name):
    sim = Sim(**CHAIN)
    contexts, weights = task_of(sim).contexts(torch.arange(2)), initial_weights(sim, SEED)

    def apart(theta):
        return kl(table(PRECISIONS[name], theta, sim, contexts), table(Numerics(), theta, sim, contexts))

    step = torch.cat([w.flatten(1) for w in weights.values()], dim=1).sin()
    before, after = apart(weights), apart(advance(weights, step, 0.1))
    assert (before > 0).all()
    assert ((before - after).abs() > 1e-3 * before).all()
    sharper = weights | {"head": 16 * weights["head"]}
    assert apart(sharper).mean() > 4 * before.mean()


def test_a_context_keeps_its_noise_wherever_it_stands(same):
    sim, numerics = Sim(**CHAIN), Numerics(kind="noise", scale=0.3, head_scale=0.3)
    contexts, weights = task_of(sim).contexts(torch.arange(2)), initial_weights(sim, SEED)
    engine, order = load(weights, arithmetic(numerics, SEED), sim), torch.randperm(12)
    whole = table(numerics, weights, sim, contexts)
    same(chunked_step(engine, None, contexts.features[order], contexts.keys[order], None).logp, whole[:, order])
    renamed = chunked_step(engine, None, contexts.features, noise.mix(contexts.keys), None).logp
    assert ((renamed - whole).abs().amax(-1) > 1e-3).all()


def test_noise_of_the_head_moves_no_route_and_grows_with_the_logits(small):
    sim = small(numerics={"kind": "noise", "scale": 0.0, "head_scale": 0.1})
    scene = build(sim, grow(sim), engines(sim, SEED), starting_weights(sim, SEED), modes=[])
    assert scene.mu_old.routes.equal(scene.old["disabled"].routes)
    weights, found = starting_weights(sim, SEED), []
    for factor in (0.1, 0.2, 4.0):
        sharper = weights | {"head": factor * weights["head"]}
        one = build(sim, grow(sim), engines(sim, SEED), sharper, modes=[])
        found.append(float(kl(one.mu_old.logp, one.old["disabled"].logp).mean()))
    assert found[1] / found[0] == pytest.approx(4.0, rel=0.1)  # KL ~ s² rms² Var ξ / 2 where the policy is flat
    assert found[2] > 10 * found[1]


def test_noise_of_the_head_is_relative_to_the_root_mean_square_of_the_logits():
    sim = Sim(**CHAIN, temperature=0.5)
    contexts, weights = task_of(sim).contexts(torch.arange(2)), initial_weights(sim, SEED)
    logits = sim.temperature * table(Numerics(), weights, sim, contexts)
    noisy = sim.temperature * table(Numerics(kind="noise", scale=0.0, head_scale=0.2), weights, sim, contexts)
    h = chunked_step(load(weights, arithmetic(Numerics(), SEED), sim), None, contexts.features, contexts.keys, None)
    raw = h.state[:, :, -1] @ weights["head"]
    key = noise.combine(noise.combine(noise.combine(noise.mix(SEED), 0)[:, None], contexts.keys), sim.layers * 16 + 4)
    xi = noise.normal(noise.combine(key[..., None], torch.arange(sim.vocab)))
    moved = raw + 0.2 * raw.square().mean(-1, keepdim=True).sqrt() * xi
    torch.testing.assert_close((noisy - logits).diff(dim=-1), (moved - raw).diff(dim=-1))


def test_a_fresh_engine_is_the_mean_of_its_draws(same, make_recipe):
    sim = Sim(**CHAIN, **FRESH)
    scene = scene_of(sim, make_recipe("minirl"))
    same(scene.mu_old.logp.exp(), scene.readings.logp.exp().mean(1))
    same(scene.readings.chance.sum(1), torch.ones_like(scene.mu_old.logp))
    apart = (scene.readings.logp - scene.mu_old.logp[:, None]).abs().amax((1, 3))
    assert (apart > 1e-2).all()
    assert len({float(x) for x in scene.readings.logp[0, :, 0, 0]}) == sim.draws


@pytest.mark.parametrize("world", ["graph", "tree"])
@pytest.mark.parametrize("setting", [FRESH, NOISY], ids=["fresh", "readings"])
@pytest.mark.parametrize(
    "name",
    [
        "minirl",
        "tis",
        "icepop",
        "reinforce",
        "reinforce rejection.kind=k3 rejection.high=0.05",
        "reinforce-plus-plus-baseline rejection.kind=k2 rejection.over=max rejection.high=0.3",
        "nfpo rejection.kind=k2 rejection.over=max rejection.high=0.3",
    ],
)
def test_sampled_responses_with_sampled_readings_come_to_the_exact_update(name, setting, world, make_recipe):
    """The mean over a sample, each token with one recorded log-prob, against the sum over every draw of every edge."""
    recipe = make_recipe(*name.split())
    sizes = CHAIN if world == "graph" else TREE | {"samples": 10_000}
    measured = Measurement(scene=scene_of(Sim(**(sizes | setting)), recipe), recipe=recipe)
    exact, batch = measured.coefficients(), measured.batch
    assert measured.form is not None
    assert batch.scene.responses.sampled
    parts = batch.expected.split(500, dim=1)
    found = torch.stack(
        [
            scatter(len(parts) * part, batch.scene.responses.of(slice(500 * i, 500 * (i + 1))), exact.shape[1])
            for i, part in enumerate(parts)
        ]
    )
    error = found.std(0) / len(parts) ** 0.5
    gap = found.mean(0) - exact
    assert gap.square().sum() < 3 * error.square().sum()  # the same on average
    assert gap.norm() < 0.1 * exact.norm()


def test_noise_of_readings_makes_a_ratio_larger_by_what_the_formula_says(make_recipe):
    """E[exp(-s ξ)] = exp(s²/2) where no reading is above 0."""
    logp = torch.log(torch.full((1, 3, 4), 0.25, dtype=torch.float64))
    readings = of_errors(logp, 0.3, 4096)
    factor = readings.mean((logp[:, None] - readings.logp).exp().flatten(1))
    torch.testing.assert_close(factor, torch.full_like(factor, math.exp(0.3**2 / 2)), rtol=1e-3, atol=0.0)


def test_a_reading_is_a_log_prob():
    logp = torch.log(torch.tensor([[[0.999, 0.001]]], dtype=torch.float64))
    readings = of_errors(logp, 0.3, 8)
    assert float(readings.logp.max()) == 0.0
    assert (readings.logp[0, :4, 0, 0] < -0.001).all()
    assert (readings.logp[0, 4:, 0, 0] == 0).all()
    torch.testing.assert_close(readings.logp[0, :, 0, 1], logp[0, 0, 1] + 0.3 * normals(8))


def test_the_errors_are_of_mean_zero_and_variance_one(same):
    for count in (2, 3, 32):
        values = normals(count)
        assert float(values.mean()) == pytest.approx(0.0, abs=1e-14)
        assert float(values.square().mean()) == pytest.approx(1.0)


@pytest.mark.parametrize("world", ["graph", "tree"])
@pytest.mark.parametrize("setting", [FRESH, NOISY], ids=["fresh", "readings"])
def test_training_samples_what_measure_knows(setting, world, make_recipe):
    """Rewards, recorded ratios and flips of a large rollout against their expectations."""
    sizes = CHAIN if world == "graph" else TREE | {"pool": 2}
    sim = Sim(**(sizes | setting | {"evaluate_every": 0}))
    recipe = make_recipe("minirl", "schedule.prompts=2", "schedule.group_size=4000")
    backend = SimBackend(sim, (Arm(recipe=recipe),), SEED)
    batch = backend.rollout(0)
    scored, _ = backend.score(batch)
    scene = scene_of(sim, recipe)
    reward, expected = batch.rewards[0], float(objectives.value(scene.mu_old.logp, scene.world))
    assert abs(float(reward.mean()) - expected) < 5 * float(reward.std()) / len(reward) ** 0.5 + 1e-12
    mask, ratio = batch.mask[0], (scored.logp_old - batch.logp_mu)[0].exp()
    of_response = torch.where(mask, ratio.square(), 0.0).sum(-1)
    edges = (2 * (scene.old["disabled"].logp[:, None] - scene.readings.logp)).exp().flatten(1)
    exact = float((scene.reached[..., None] * scene.mu_old.logp.exp() * scene.readings.mean(edges)).sum())
    assert abs(float(of_response.mean()) - exact) < 5 * float(of_response.std()) / len(of_response) ** 0.5
    assert float((batch.logp_mu * mask).max()) <= 0.0


def test_every_token_of_a_response_has_a_draw_of_its_own(make_recipe):
    sim = Sim(**(CHAIN | FRESH))
    scene = scene_of(sim, make_recipe("minirl"))
    paths = scene.responses
    said, mean = recorded(scene.readings, paths), gather(scene.mu_old.logp, paths)
    edge = paths.path[0].flatten()
    same_edge = edge == edge.mode().values
    assert len(said[0].flatten()[same_edge].unique()) == sim.draws
    assert len(mean[0].flatten()[same_edge].unique()) == 1


@pytest.mark.parametrize("setting", [FRESH, NOISY], ids=["fresh", "readings"])
@pytest.mark.parametrize(
    ("world", "name"), [("graph", "minirl"), ("graph", "gspo"), ("tree", "minirl"), ("tree", "mis")]
)
def test_measure_says_what_is_sampled(world, name, setting, make_recipe):
    sizes = CHAIN if world == "graph" else TREE
    sim, recipe = Sim(**(sizes | setting | {"samples": 64})), make_recipe(name)
    result = measure(recipe, sim)
    exact = Measurement(scene=scene_of(sim, recipe), recipe=recipe).form is not None
    assert ("gradient_error" in result["intervals"]) != exact
    assert "diagnostics.chi2_seq" in result["intervals"]
    assert any(f"sim.draws = {sim.draws}" in note for note in result["notes"])
    assert result["kl_mu_old"] > 0


def test_what_is_drawn_is_refused_where_it_has_no_meaning(make_recipe):
    refused = {
        "R3 replays routes that sim.numerics.fresh draws": (make_recipe("minirl-r3"), FRESH),
        "reads the whole distribution of mu, but": (make_recipe("trm"), NOISY),
    }
    for message, (recipe, setting) in refused.items():
        with pytest.raises(ConfigError, match=message):
            measure(recipe, Sim(**(CHAIN | setting)))
    for message, setting in {
        "numerics.fresh both draw one of sim.draws": FRESH | {"reading_noise": 0.1},
        "numerics.kind = batch both draw one of sim.draws": {"numerics": Numerics(kind="batch"), "reading_noise": 0.1},
        "training_numerics.fresh is not defined": {"training_numerics": Numerics(kind="noise", fresh=True)},
    }.items():
        with pytest.raises(ValidationError, match=message):
            Sim(**(CHAIN | setting))
