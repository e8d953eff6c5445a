"""Terms beside the weights: exact against loops over responses, in both worlds, as samples, and in training."""

from dataclasses import replace

import pytest
import torch

from firstorder.core.errors import ConfigError
from firstorder.core.method import terms
from firstorder.core.method.recipe import Recipe
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm
from firstorder.core.training.loop import train
from firstorder.sim.coldstart import starting_weights
from firstorder.sim.config import Sim
from firstorder.sim.exact.edges import vjp
from firstorder.sim.exact.measure import measure
from firstorder.sim.exact.measurement import Measurement, update
from firstorder.sim.exact.sampled import sample_responses, sampled_edges, sampled_fits
from firstorder.sim.exact.scene import MODES, build, engines, grow
from firstorder.sim.exact.staleness import path
from firstorder.sim.exact.terms import report
from firstorder.sim.exact.world import scatter
from firstorder.sim.training.backend import SimBackend
from firstorder.sim.training.expected import check_update
from firstorder.sim.training.session import SimRun

RTOL = 1e-10
SECTIONS = {
    "k1": ["terms.reference_kl=0.7", "terms.reference_estimator=k1"],
    "k2": ["terms.reference_kl=0.7", "terms.reference_estimator=k2"],
    "k3": ["terms.reference_kl=0.7"],
    "unbiased": ["terms.reference_kl=0.7", "terms.reference_estimator=unbiased"],
    "full": ["terms.reference_kl=0.7", "terms.reference_estimator=full"],
    "entropy": ["terms.entropy=0.3"],
    "squared_mu": ["terms.squared_log_ratio=0.4"],
    "squared_old": ["terms.squared_log_ratio=0.4", "terms.squared_of=theta/old"],
}
ALL = ["terms.reference_kl=0.7", "terms.entropy=0.3", "terms.squared_log_ratio=0.4"]
NORMED = {  # every replay, every norm, and a weight without an exact form in the graph
    "minirl-r2": [],
    "minirl-r3": ["aggregation.kind=length", "aggregation.alpha=0.5"],
    "grpo": [],
    "dapo": ["clip.low=0.05", "clip.high=0.05"],
    "gmpo": ["aggregation.kind=constant", "aggregation.constant=2.5"],
}
CHAIN = {"task": "chain", "prompts": 2, "positions": 3, "vocab": 5, "horizon": 4, "recovery": 1, "samples": 64}
SIZES = {"layers": 2, "experts": 4, "width": 6, "expert_width": 4}


@pytest.fixture(scope="module")
def stale(small, make_lab, make_scene):
    sim = small(staleness=2, lr=1.0)
    return make_lab(sim), make_scene(sim)


def settled(world, members=2, away=0.05, seed=3):
    """Policies on a chain that have moved, and a reference elsewhere."""
    sim = Sim(world=world, **CHAIN, **SIZES)
    seeds = torch.arange(members)
    draw, pair, theta_old = torch.Generator().manual_seed(seed), engines(sim, seeds), starting_weights(sim, seeds)
    theta, other = (
        {k: w + away * torch.randn(w.shape, generator=draw, dtype=w.dtype) for k, w in theta_old.items()}
        for _ in range(2)
    )
    return build(sim, grow(sim), pair, theta_old, theta, MODES, other)


def part(measurement):
    """What the terms add to the update, `[M, P]`."""
    edges = sum(measurement.term_coefficients.values())
    return vjp(measurement.target, edges, measurement.scene.weights)


@pytest.mark.parametrize("name", NORMED)
@pytest.mark.parametrize("section", SECTIONS)
def test_the_exact_term_is_autograd_of_the_published_loss_over_every_response(
    name, section, stale, reference, make_recipe, same
):
    lab, scene = stale
    recipe, bare = (make_recipe(name, *NORMED[name], *more) for more in (SECTIONS[section], []))
    expected = -reference.slope(lab.penalty(recipe), lab.weights)
    measurement = Measurement(scene=scene, recipe=recipe)
    same(part(measurement)[0], expected, RTOL)
    same((measurement.update - update(scene, bare))[0], expected, 1e-8)


@pytest.mark.parametrize("name", NORMED)
def test_both_worlds_agree_on_every_term(name, make_recipe):
    tree, graph = settled("tree"), settled("graph")
    for section in SECTIONS.values():
        recipe = make_recipe(name, *NORMED[name], *section)
        expected, found = (part(Measurement(scene=scene, recipe=recipe)) for scene in (tree, graph))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
        assert expected.abs().max() > 1e-6


def test_the_reference_is_pi_old_unless_it_is_given(make_recipe, make_scene, small):
    scene = make_scene(small(staleness=2, lr=1.0))
    for mode in MODES:
        assert torch.equal(scene.logp_ref(mode), scene.old[mode].logp)
    given = settled("tree")
    assert all(not torch.equal(given.logp_ref(mode), given.old[mode].logp) for mode in MODES)
    theta = {name: w.detach() for name, w in given.weights.items()}
    sim = Sim(world="tree", **CHAIN, **SIZES)
    own = build(sim, given.world, engines(sim, torch.arange(2)), theta, reference=theta)
    for mode in MODES:  # under the same replay, so that at the start every estimator is silent
        assert torch.equal(own.logp_ref(mode), own.target[mode].logp.detach())
    silent = Measurement(scene=own, recipe=make_recipe("minirl-r3", "terms.reference_kl=1.0"))
    assert not silent.term_coefficients["reference_kl"].any()


def test_a_sample_comes_to_the_exact_terms(make_recipe, stale):
    """Sums over edges with random signs of batches of their own norm, within five standard errors of the limit."""
    _, scene = stale
    draw = torch.Generator().manual_seed(4)
    signs = 2 * torch.randint(0, 2, (scene.mu_old.logp[0].numel(), 12), generator=draw).double() - 1
    for name, norm in NORMED.items():
        if name == "dapo":
            continue  # its mean length is the batch's: see the interval below
        for section in (ALL, SECTIONS["unbiased"]):
            every, bare = (Measurement(scene=scene, recipe=make_recipe(name, *norm, *more)) for more in (section, []))
            picks = sample_responses(scene, 2, 4, 4000, torch.Generator().manual_seed(7))
            drawn = (sampled_edges(every, picks) - sampled_edges(bare, picks)) @ signs
            exact = sum(every.term_coefficients.values())[0].flatten() @ signs
            error = drawn.std(0) / len(drawn) ** 0.5
            assert error.all()
            assert ((drawn.mean(0) - exact).abs() <= 5 * error).all(), name


def test_the_interval_of_a_batch_with_terms_closes_in_on_its_limit(stale, make_recipe):
    _, scene = stale
    recipe = make_recipe("dapo", *NORMED["dapo"], *ALL, "schedule.prompts=2000")
    found = sampled_fits(Measurement(scene=scene, recipe=recipe), blocks=12, batches=2)["gradient_error"]
    u, g = update(scene, recipe)[0], Measurement(scene=scene, recipe=recipe).gradient[0]
    limit = float((u * (u @ g) / (u @ u) - g).norm() / g.norm())
    assert 0 < found.high - found.low < 0.2 * limit
    assert abs(found.estimate - limit) < found.high - found.low


def test_random_readings_are_averaged_over(make_recipe):
    """The squared log ratio of a noisy reading: its mean over the readings that are equally likely."""
    sim = Sim(world="tree", **CHAIN, **SIZES, reading_noise=0.3, draws=5)
    seeds = torch.arange(1)
    theta_old = starting_weights(sim, seeds)
    theta = {k: 1.1 * w for k, w in theta_old.items()}
    scene = build(sim, grow(sim), engines(sim, seeds), theta_old, theta)
    measurement = Measurement(scene=scene, recipe=make_recipe("minirl", *SECTIONS["squared_mu"]))
    log_ratio = scene.target["disabled"].logp.detach()[:, None] - scene.readings.logp
    assert log_ratio.shape[1] == 5
    expected = -0.4 * measurement.taken * 2 * log_ratio.mean(1)
    torch.testing.assert_close(measurement.term_coefficients["squared_log_ratio"], expected)


def test_measure_says_what_each_term_does(small, make_recipe):
    sim = small(staleness=2, lr=1.0)
    found = measure(make_recipe("grpo", *ALL), sim)
    assert list(found["terms"]) == ["reference_kl", "entropy", "squared_log_ratio"]
    assert found["terms"]["entropy"]["value"] == pytest.approx(found["entropy"])
    for row in found["terms"].values():
        assert row["norm"] > 0
        assert row["share"] == pytest.approx(row["norm"] / found["gradient_norm"])
        assert -1 <= row["cosine"] <= 1
    assert found["variance"] is None
    assert any("the reference is pi_old" in note for note in found["notes"])
    assert measure(make_recipe("grpo"), sim)["terms"] == {}


def test_the_error_of_each_estimator_on_fresh_responses_and_on_stale_ones(small, make_recipe):
    """Fresh: θ = θ_old, and the reference four steps behind. Stale: the reference is π_old, as in `measure`."""

    def errors(fresh, **changes):
        sim = small(**changes)
        start, pair = starting_weights(sim, torch.tensor([0])), engines(sim, torch.arange(1))
        *_, theta = path(sim.model_copy(update={"lr": 1.0}), pair, start, 4)
        old, new = (theta, None) if fresh else (start, theta)
        scene = build(sim, grow(sim), pair, old, new, reference=start)
        made = (make_recipe("minirl-r3", *SECTIONS[name]) for name in ("k1", "k2", "k3", "unbiased", "full"))
        return [report(Measurement(scene=scene, recipe=recipe))["reference_kl"]["error"] for recipe in made]

    k1, k2, k3, unbiased, full = errors(True, numerics={"kind": "exact"})
    assert k1 == pytest.approx(1, rel=1e-12)  # nothing at all is left of it
    assert k2 < 1e-12
    assert k3 > 0.1  # of the other direction
    assert unbiased < 1e-12
    assert full == 0.0
    for fresh in (True, False):  # with mismatch, and on stale responses above all
        *biased, unbiased, full = errors(fresh)
        assert min(biased) > 1e-3
        assert unbiased < 1e-12


def test_at_staleness_0_the_reference_kl_is_inert_but_for_k1(small, make_recipe):
    found = measure(make_recipe("minirl", "terms.reference_kl=0.1"), small())
    assert found["terms"]["reference_kl"] | {"cosine": None} == {
        "value": 0.0,
        "norm": 0.0,
        "share": 0.0,
        "cosine": None,
        "error": None,
    }
    assert any(line.startswith("terms.reference_kl = 0.1: theta equals theta_ref") for line in found["inert"])
    k1 = measure(make_recipe("minirl", "terms.reference_kl=0.1", "terms.reference_estimator=k1"), small())
    assert k1["terms"]["reference_kl"]["norm"] > 0  # of the mismatch alone
    assert not any("reference_kl" in line for line in k1["inert"])
    alike = small(numerics={"kind": "exact"})
    k1 = measure(make_recipe("minirl", "terms.reference_kl=0.1", "terms.reference_estimator=k1"), alike)
    assert k1["terms"]["reference_kl"]["norm"] < 1e-12  # on policy it restrains nothing


# training

SETTINGS = ["schedule.steps=3", "schedule.prompts=4", "schedule.group_size=4", "optimizer.lr=0.01"]
TRAINED = Sim(vocab=4, horizon=3, prompts=2, pool=6, width=8, expert_width=8, evaluate_every=2)
GRAPH = Sim(world="graph", **CHAIN, **SIZES, evaluate_every=0)


def recipe_of(name, *more):
    return toml.build(Recipe, toml.override(toml.read(name), [*SETTINGS, "schedule.minibatches=2", *more]))


def trained(arms, sim, seeds=(5,)):
    logs = []
    backend = SimBackend(sim, arms, torch.tensor(seeds))
    train(arms, backend, on_step=logs.append)
    return backend, logs


@pytest.mark.parametrize("sim", [TRAINED, GRAPH], ids=["sequences", "table"])
@pytest.mark.parametrize("name", ["minirl-r2", "minirl-r3", "dapo"])
def test_a_sampled_step_goes_down_the_loss_with_its_terms(name, sim):
    """Plain SGD on the published loss, by autograd through the sampled responses."""
    more = ["optimizer.kind=sgd", "optimizer.max_grad_norm=inf", "schedule.minibatches=1", "schedule.steps=1"]
    plain, full = recipe_of(name, *more), recipe_of(name, *more, *ALL)
    moved = {}
    for key, recipe in (("plain", plain), ("full", full)):
        backend = SimBackend(sim, (Arm(recipe=recipe, members=1),), torch.tensor([5]))
        if backend.reference is not None:
            draw = torch.Generator().manual_seed(1)
            backend.reference = {
                k: w + 0.1 * torch.randn(w.shape, generator=draw, dtype=w.dtype) for k, w in backend.reference.items()
            }
        before, kept = backend._vector(), []
        train((Arm(recipe=recipe, members=1),), backend, on_batch=lambda step, scored, kept=kept: kept.append(scored))
        moved[key] = backend._vector() - before, kept[0], backend
    scored, backend = moved["full"][1], moved["full"][2]
    mask, batch = scored.batch.mask, scored.batch
    assert torch.equal(moved["plain"][1].batch.tokens, batch.tokens)
    from firstorder.sim.model.policy import gradient, leaves, load

    theta = leaves(starting_weights(sim, torch.tensor([5])))
    scores = backend.reader.score(load(theta, backend.engines.pi, sim), batch.tokens, scored.replay, spread=True)
    p, q, m = (torch.where(mask, x, 0.0) for x in (scores.logp, scored.logp_ref, batch.logp_mu))
    loss = 0.7 * ((q - p).exp() - (q - p) - 1) + 0.4 * (p - m) ** 2 - 0.3 * scores.entropy
    norm = mask.sum(-1).double().mean() if name == "dapo" else 1.0
    slope = gradient((torch.where(mask, loss, 0.0) / norm).sum() / mask.shape[1], theta)
    torch.testing.assert_close(moved["full"][0] - moved["plain"][0], -0.01 * slope, rtol=1e-8, atol=1e-12)
    assert slope.abs().max() > 1e-4


@pytest.mark.parametrize("update_of", ["sampled", "expected"])
def test_what_each_term_is_worth_is_logged_and_starts_at_nothing(update_of):
    arms = (Arm(recipe=recipe_of("minirl-r3", *ALL), members=1), Arm(recipe=recipe_of("minirl"), members=1))
    sim = TRAINED.model_copy(update={"update": update_of})
    backend, logs = trained(arms, sim, (5, 5))
    names = [f"terms/{name}" for name in ("reference_kl", "entropy", "squared_log_ratio")]
    for log in logs:
        assert [name for name in log.metrics if name.startswith("terms/")] == names
        assert all(log.metrics[name][0] > 0 and log.metrics[name][1] == 0 for name in names)
        assert {name for name in log.receipts if name.startswith("inert/")} >= {"inert/reference_kl"}
    assert set(names) <= set(backend.quantities)
    single = (Arm(recipe=recipe_of("minirl-r3", "schedule.minibatches=1", *ALL), members=1),)
    assert float(trained(single, sim)[1][0].metrics["terms/reference_kl"]) == 0.0
    assert not any(name.startswith("terms/") for name in trained(arms[1:], sim)[1][0].metrics)


def test_a_strong_reference_keeps_the_policy_at_home_and_a_bonus_keeps_its_entropy():
    def end(*section):
        backend, logs = trained((Arm(recipe=recipe_of("minirl", "schedule.steps=12", *section), members=1),), TRAINED)
        away = sum((w - h).square().sum() for w, h in zip(*(x.values() for x in (backend.weights, home)), strict=True))
        return float(away), float(logs[-1].metrics["update/entropy"])

    home = starting_weights(TRAINED, torch.tensor([5]))
    bare, near, wide = end(), end("terms.reference_kl=30.0", "terms.reference_estimator=k2"), end("terms.entropy=1.0")
    assert near[0] < bare[0]
    assert wide[1] > bare[1]


def test_in_training_the_expected_update_has_the_reference_of_the_start(make_recipe):
    recipe = recipe_of("minirl-r3", *ALL)
    arms, sim = (Arm(recipe=recipe, members=1),), TRAINED.model_copy(update={"update": "expected"})
    backend, _ = trained(arms, sim)
    u, _ = backend.expectation.update(backend.rollout_weights, backend.weights)
    scene = build(
        sim,
        backend.expectation.world,
        backend.engines,
        backend.weights,
        None,
        ["R3"],
        starting_weights(sim, torch.tensor([5])),
    )
    torch.testing.assert_close(u, update(scene, recipe))
    assert not torch.allclose(u, update(replace(scene, reference={}), recipe))


def test_a_run_with_terms_is_resumed_bit_for_bit(tmp_path):
    sim = TRAINED.model_copy(
        update={"checkpoint_every": 1, "coldstart_steps": 2}
        if "coldstart_steps" in Sim.model_fields
        else {"checkpoint_every": 1}
    )
    whole, broken = (SimRun(recipe=recipe_of("minirl-r3", *ALL), sim=sim) for _ in range(2))
    whole.prepare(tmp_path / "whole").run()

    class Stop(Exception):
        pass

    def stop(log):
        if log.step == 1:
            raise Stop

    with pytest.raises(Stop):
        broken.prepare(tmp_path / "broken").run(stop)
    broken.prepare(tmp_path / "broken", resume=True).run()
    for file in ("metrics.jsonl", "receipts.jsonl"):
        a, b = ((tmp_path / run / file).read_text() for run in ("whole", "broken"))
        assert a == b


def test_a_kl_over_the_vocabulary_is_trained_along_expected_updates_only():
    full = recipe_of("minirl", *SECTIONS["full"])
    with pytest.raises(ConfigError, match="set unbiased"):
        check_update(full, TRAINED)
    expected = TRAINED.model_copy(update={"update": "expected"})
    check_update(full, expected)
    _, logs = trained((Arm(recipe=full, members=1),), expected)
    assert float(logs[-1].metrics["terms/reference_kl"]) > 0


def test_every_edge_of_a_sample_of_responses_is_added_up_once(stale, make_recipe, same):
    """Token terms by edge are those of all responses, weighed one by one."""
    _, scene = stale
    for name, norm in NORMED.items():
        measurement = Measurement(scene=scene, recipe=make_recipe(name, *norm, *SECTIONS["k3"]))
        weight = terms.term_weights(measurement.batch.stats, measurement.recipe)["reference_kl"]
        edges = scatter(scene.measure[..., None] * weight, scene.responses, scene.world.contexts)
        same(measurement.term_coefficients["reference_kl"], edges, RTOL)


@pytest.mark.parametrize("mask", ["replayed", "ignored"])
def test_terms_of_a_policy_whose_samples_are_truncated(mask, make_recipe, make_scene, small, same):
    scene = make_scene(small(staleness=2, lr=1.0, vocab=4, top_p=0.8, sampling_mask=mask))
    assert (scene.mu_old.logp < -100).any()
    for section in SECTIONS.values():
        measurement = Measurement(scene=scene, recipe=make_recipe("minirl-r3", *section))
        weights = terms.term_weights(measurement.batch.stats, measurement.recipe)
        for name, weight in weights.items():
            edges = scatter(scene.measure[..., None] * weight, scene.responses, scene.world.contexts)
            same(measurement.term_coefficients[name], edges, RTOL)
        assert measurement.update.isfinite().all()
        assert part(measurement).any()


@pytest.mark.parametrize("sim", [TRAINED, GRAPH], ids=["sequences", "table"])
def test_training_with_terms_on_truncated_samples_and_by_rules_of_replay(sim):
    truncated = sim.model_copy(update={"top_p": 0.8})
    recipe = recipe_of("minirl-r3", *ALL, "schedule.minibatches=1", "router_replay.margin=0.1")
    (first, *others) = trained((Arm(recipe=recipe, members=1),), truncated)[1]
    assert float(first.metrics["terms/reference_kl"]) == 0.0  # the reference goes by the same rule
    assert all(float(log.metrics["terms/reference_kl"]) > 0 for log in others)
    gated = recipe_of("minirl-r3", *ALL, "schedule.minibatches=1", "router_replay.gates=replayed")
    assert float(trained((Arm(recipe=gated, members=1),), truncated)[1][0].metrics["terms/reference_kl"]) == 0.0
