"""Top-p, top-k and min-p of the rollout engine: who is kept, and what a mask costs that is replayed, or ignored."""

import math

import pytest
import torch
from chains import PLAIN, arms_of, recipe, sampled_updates, sim_of, trained
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.errors import ConfigError
from firstorder.core.training.loop import logged_quantities
from firstorder.sim.config import Sim
from firstorder.sim.exact import objectives, variance
from firstorder.sim.exact.baselines import parabola, squares
from firstorder.sim.exact.measure import measure
from firstorder.sim.exact.measurement import Measurement
from firstorder.sim.exact.quantities import MASK
from firstorder.sim.exact.scene import MODES, build
from firstorder.sim.exact.scores import directions
from firstorder.sim.model import noise
from firstorder.sim.model.truncation import FLOOR, edges, keeps, named, restricted
from firstorder.sim.training.backend import SimBackend
from firstorder.sim.training.expected import check_update, training_world

GRAPH = {"world": "graph", "task": "chain", "vocab": 5, "positions": 2, "right": 2, "prompts": 2, "horizon": 4}
CUTS = ({"top_p": 0.7}, {"sample_top_k": 2}, {"min_p": 0.3}, {"top_p": 0.8, "sample_top_k": 3, "min_p": 0.1})


def by_vllm(logits, sim):
    """vLLM's own steps, `apply` of its min-p processor and `apply_top_k_top_p_pytorch`, as bool."""
    logits = logits.clone()
    if sim.min_p:
        p = logits.softmax(-1)
        logits[p < sim.min_p * p.amax(-1, keepdim=True)] = -torch.inf
    ascending, order = logits.sort(dim=-1, descending=False)
    if sim.sample_top_k:
        place = max(0, ascending.shape[-1] - sim.sample_top_k)
        ascending = ascending.masked_fill(ascending < ascending[..., place : place + 1], -torch.inf)
    if sim.top_p < 1:
        out = ascending.softmax(-1).cumsum(-1) <= 1 - sim.top_p
        out[..., -1] = False
        ascending = ascending.masked_fill(out, -torch.inf)
    return logits.scatter(-1, order, ascending) > -torch.inf


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 1e-6]),
    top_k=st.sampled_from([0, 1, 3, 99]),
    min_p=st.sampled_from([0.0, 0.05, 0.9]),
)
def test_the_kept_tokens_are_vllm_s(seed, top_p, top_k, min_p):
    sim = Sim(top_p=top_p, sample_top_k=top_k, min_p=min_p)
    logits = 2 * torch.randn(7, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    keep = keeps(logits.log_softmax(-1), sim)
    expected = by_vllm(logits, sim)
    assert expected.all() if keep is None else torch.equal(keep, expected)


def test_the_token_that_crosses_top_p_is_kept_and_all_that_tie_with_the_last_of_top_k():
    logp = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    assert keeps(logp, Sim(top_p=0.5)).tolist() == [True, True, False, False]
    assert keeps(logp, Sim(top_p=0.7001)).tolist() == [True, True, True, False]
    assert keeps(logp, Sim(top_p=1e-9)).tolist() == [True, False, False, False]
    tied = torch.tensor([0.4, 0.2, 0.2, 0.2], dtype=torch.float64).log()
    assert keeps(tied, Sim(sample_top_k=2)).tolist() == [True] * 4
    # top-p is of what top-k leaves, renormalised: 0.4 / 0.7 alone is below 0.6
    assert keeps(logp, Sim(sample_top_k=2, top_p=0.6)).tolist() == [True, True, False, False]
    assert keeps(logp, Sim(top_p=0.4001)).tolist() == [True, True, False, False]
    assert keeps(logp, Sim(top_p=0.6)).tolist() == keeps(logp, Sim(top_p=0.7)).tolist()


def test_nothing_that_is_left_out_is_drawn():
    logp = torch.tensor([0.0, 0.3, 0.7, 0.0], dtype=torch.float64).log().clamp(min=FLOOR)
    cumulative = edges(logp)[:-1]
    u = torch.tensor([2.0**-60, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    assert (cumulative < u[:, None]).sum(-1).tolist() == [1, 2, 2]


def test_ids_stand_in_order_and_a_whole_vocabulary_has_none():
    keep = torch.tensor([[True, False, True], [True, True, True], [False, True, False]])
    assert named(keep).tolist() == [[0, 2], [-1, -1], [1, -1]]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("world", ["tree", "graph"])
def test_a_mask_that_is_replayed_leaves_theorems_as_they_are(world, cut, make_scene, make_recipe, small, same):
    """The whole ratio makes the update the gradient of a target that is masked as μ is."""
    sim = small(**GRAPH | {"world": world}, **cut, staleness=1, lr=2.0)
    scene = make_scene(sim)
    assert scene.mask.replayed
    assert 0.05 < float((~scene.mask.keep).double().mean()) < 0.9
    for mode in MODES:
        found = Measurement(scene=scene, recipe=make_recipe("reinforce-is", f"router_replay.mode={mode}"))
        same(found.update, found.gradient, 1e-9)
        assert float(found.gradient.norm()) > 1e-3
        same(scene.target[mode].logp.detach().exp().sum(-1), torch.ones_like(scene.reached))


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("world", ["tree", "graph"])
def test_a_mask_that_is_ignored_leaves_the_ratio_below_one_and_the_gradient_out_of_reach(
    world, cut, make_scene, make_recipe, small, same
):
    sim = small(**GRAPH | {"world": world}, **cut, sampling_mask="ignored")
    scene, plain = make_scene(sim), make_scene(sim.model_copy(update={"top_p": 1.0, "sample_top_k": 0, "min_p": 0.0}))
    same(scene.target["disabled"].logp.detach(), plain.target["disabled"].logp.detach())
    mu, pi = (torch.where(scene.mask.keep, x, -torch.inf) for x in (scene.mu_old.logp, scene.target["disabled"].logp))
    rho = torch.where(scene.mask.keep, (pi - mu).exp(), 0.0)
    same((mu.exp() * rho).sum(-1), 1 - scene.mask.outside)
    plainly = make_recipe("reinforce-is", "advantage.baseline=none", "about.scope=sequence")
    found = Measurement(scene=scene, recipe=plainly)
    same(found.gradient, Measurement(scene=plain, recipe=plainly).gradient)
    # E_μ[W R ∇ log π] reaches the responses that μ may say, and no others
    inside = torch.where(scene.mask.keep, scene.target["disabled"].logp.detach(), FLOOR)
    covered = objectives.slopes(inside, scene.world)
    assert float(objectives.value(inside, scene.world)) < float(objectives.value(pi.detach(), scene.world)) + 1e-12
    assert not torch.allclose(found.update, found.gradient, rtol=1e-3)
    values = objectives.values(scene, "disabled")
    linear = (scene.worth * mu.exp() * (rho - 1)).sum((-2, -1))
    same(values.error, values.j_seq - values.j_mu - linear, 1e-9)
    same(found.update, objectives.vjp(found.target, covered, scene.weights), 1e-8)


def test_the_graph_measures_as_the_tree_does(small, make_recipe):
    for mask in ("replayed", "ignored"):
        pair = [
            measure(make_recipe("minirl-r3"), small(**GRAPH | {"world": world}, top_p=0.7, sampling_mask=mask))
            for world in ("tree", "graph")
        ]
        for name in ("j_seq", "j_mu", "approximation_error", "gradient_error", "gradient_error_natural", "kl_mu_old"):
            assert pair[0][name] == pytest.approx(pair[1][name], rel=1e-8, abs=1e-12), name
        assert pair[0]["mask"] == pytest.approx(pair[1]["mask"], rel=1e-8)


def test_what_a_mask_costs_is_measured_in_either_case(small, make_recipe):
    sim = small(vocab=5, horizon=3, sharpness=2.0, top_p=0.8)
    replayed, ignored, without = (
        measure(make_recipe("reinforce-is"), sim.model_copy(update=change))
        for change in ({}, {"sampling_mask": "ignored"}, {"top_p": 1.0})
    )
    assert replayed["gradient_error"] < 1e-9
    assert without["gradient_error"] < 1e-9
    assert without["mask"] is None
    assert set(replayed["mask"]) == set(MASK)
    assert ignored["gradient_error"] > 0.01
    assert ignored["mask"]["gradient_error_whole"] == pytest.approx(ignored["gradient_error_natural"])
    assert replayed["mask"]["gradient_error_whole"] > 0.01
    for name in ("tokens_truncated", "kept", "mass_outside", "j_whole"):
        assert replayed["mask"][name] == pytest.approx(ignored["mask"][name])
    assert ignored["j_seq"] == pytest.approx(ignored["mask"]["j_whole"]) == pytest.approx(without["j_seq"])
    assert replayed["kl_mu_old"] < ignored["kl_mu_old"]
    assert any("no weight is unbiased" in note for note in ignored["notes"])
    assert not any("unbiased" in note for note in replayed["notes"])


@pytest.mark.parametrize("mask", ["replayed", "ignored"])
def test_norms_of_responses_are_those_of_the_masked_policy(mask, small, make_scene, make_recipe, same):
    scene = make_scene(small(staleness=1, lr=2.0, top_p=0.8, sampling_mask=mask))
    measurement = Measurement(scene=scene, recipe=make_recipe("minirl-r3"))
    up = measurement.batch.up.weight
    found = variance.response_norms(measurement, up)
    said = (scene.measure[0] > 1e-100).nonzero().flatten().tolist()
    assert 0 < len(said) < len(scene.responses)
    for row in said[::3]:
        only = torch.zeros_like(up)
        only[:, row] = 1
        same(found[row, 0], objectives.direction(scene, "R3", only * up).square().sum(), 1e-9)


@pytest.mark.parametrize(("kind", "top_p"), [("horizon", 0.9), ("feedback", 0.7), ("sums", 0.7)])
@pytest.mark.parametrize("mask", ["replayed", "ignored"])
def test_the_mean_of_sampled_updates_is_the_expected_one_under_a_mask(mask, kind, top_p):
    """Within 5 standard errors along 40 random directions; a mask that π forgets, or a ratio without it, is outside."""
    members, change = 96, {"numerics": {"kind": "noise", "scale": 0.4}, "top_p": top_p, "sampling_mask": mask}
    words = {"task": "sum", "world": "tree", "vocab": 4, "prompts": 2, "pool": 2, "horizon": 3, "evaluate_every": 0}
    sim = Sim(**words, width=8, expert_width=4, experts=4, **change) if kind == "sums" else sim_of(kind, **change)
    arm = arms_of(["minirl-r3"], members, *PLAIN)[0]
    backend = SimBackend(sim, (arm,), torch.arange(members))
    first = {key: w[:1].expand_as(w).contiguous() for key, w in backend.weights.items()}
    backend.weights = backend.rollout_weights = first
    pair = backend.engines
    backend.engines = type(pair)(
        pi=pair.pi.members(slice(1)).repeat(members), mu=pair.mu.members(slice(1)).repeat(members)
    )
    found = sampled_updates(backend, arm, 12)
    scene = build(sim, training_world(sim), backend.engines.members(slice(1)), {key: w[:1] for key, w in first.items()})
    u = Measurement(scene=scene, recipe=arm.recipe).update[0]
    key = noise.combine(noise.mix(torch.arange(40))[:, None], torch.arange(len(u)))
    along = torch.cat([noise.normal(key), u[None] / u.norm()]).T
    seen, expected = found @ along, u @ along
    error = seen.std(0) / math.sqrt(len(seen))
    assert ((seen.mean(0) - expected).abs() < 5 * error).all()
    assert float(expected[-1]) > 10 * float(error[-1])


@pytest.mark.parametrize("kind", ["horizon", "feedback", "tree"])
def test_log_probs_of_a_batch_are_those_of_the_scene_s_masked_policies(kind, same):
    """Token by token: with the same weights and no noise the two engines agree on every token to rounding."""
    sim = sim_of(kind, top_p=0.8, sample_top_k=3, numerics={"kind": "exact"})
    backend = SimBackend(sim, arms_of(["minirl"]), torch.tensor([5]))
    batch = backend.rollout(0)
    scored, moments = backend.score(batch)
    same(scored.logp_old, batch.logp_mu, 1e-9)
    (cut, count), (kept_tokens, _) = moments["mask/tokens_truncated"], moments["mask/kept"]
    assert 0 < float(cut) <= float(count)
    assert 1 <= float(kept_tokens / cut) <= 3
    assert 0 < float(moments["mask/mass_outside"][0] / count) < 0.5
    ignored = SimBackend(sim.model_copy(update={"sampling_mask": "ignored"}), arms_of(["minirl"]), torch.tensor([5]))
    again = ignored.rollout(0)
    assert again.kept is None
    assert torch.equal(again.tokens, batch.tokens)
    apart = (again.logp_mu - ignored.score(again)[0].logp_old)[batch.mask]
    assert float(apart.mean()) > 0.05
    assert float(apart.min()) > -1e-12


def test_receipts_say_that_the_mask_was_replayed_and_are_known_by_name():
    sim = sim_of("answer", top_p=0.8)
    backend, logs = trained(sim, arms_of(["minirl-r3"]), [5])
    for log in logs:
        assert 0 < float(log.receipts["mask/tokens_truncated"]) <= 1
        assert {"mask/kept", "mask/mass_outside"} <= set(log.receipts)
        assert set(log.metrics) | set(log.receipts) <= set(logged_quantities(backend)) | set(log.metrics)
    assert {name for name in logs[0].receipts if name.startswith("mask/")} <= set(logged_quantities(backend))
    _, plain = trained(sim_of("answer"), arms_of(["minirl-r3"]), [5])
    assert not any(name.startswith("mask/") for name in plain[0].receipts)


def test_an_engine_drawn_at_every_token_has_no_tail_to_leave_out_in_training():
    fresh = {"numerics": {"kind": "noise", "scale": 0.2, "fresh": True}, "draws": 2}
    with pytest.raises(ConfigError, match=r"sim.sample_top_k = 2, sim.top_p = 0.8 leaves out the tail of one engine"):
        check_update(recipe("minirl"), sim_of(**fresh, top_p=0.8, sample_top_k=2))


def test_restriction_is_that_of_the_softmax():
    logp = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    keep = torch.tensor([True, False, True, True]).expand(3, 4)
    p = restricted(logp, keep).exp()
    torch.testing.assert_close(
        p, torch.where(keep, logp.exp(), 0.0) / (1 - logp.exp()[:, 1:2]), rtol=1e-12, atol=1e-200
    )


@pytest.mark.parametrize("mask", ["replayed", "ignored"])
def test_norms_by_recursion_are_those_of_enumeration_under_a_mask(mask, small, make_recipe):
    """The variance of the graph, by scores of the masked policy, against the tree's, response by response."""
    pair = [
        measure(make_recipe("minirl-no-clip"), small(**GRAPH | {"world": world}, top_p=0.7, sampling_mask=mask))
        for world in ("tree", "graph")
    ]
    assert pair[0]["variance"] == pytest.approx(pair[1]["variance"], rel=1e-8)
    assert "variance" not in pair[1]["intervals"]


def test_the_best_baselines_of_a_mask_are_finite_and_no_worse_than_none(small, make_scene):
    for change in ({"top_p": 0.7}, {"top_p": 0.7, "sampling_mask": "ignored"}):
        scene = make_scene(small(**GRAPH, **change), modes=("disabled",))
        found = squares(parabola(scene, "disabled", directions(scene, "disabled")))
        assert all(bool(x.isfinite().all()) for x in found.values())
        assert float(found["b best of a context"]) <= float(found["b best of a prompt"]) <= float(found["b = 0"])
