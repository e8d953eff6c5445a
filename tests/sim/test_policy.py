import itertools

import pytest
import torch

from firstorder.sim.config import Numerics, Sim
from firstorder.sim.exact import objectives
from firstorder.sim.exact.edges import Given, Routes, vjp
from firstorder.sim.exact.forward import run
from firstorder.sim.exact.scene import MODES, build, engines, grow
from firstorder.sim.exact.tree import plant
from firstorder.sim.exact.world import gather
from firstorder.sim.model import chunks
from firstorder.sim.model.numerics import arithmetic
from firstorder.sim.model.policy import flatten, initial_state, initial_weights, load, step, trainable, unflatten
from firstorder.sim.tasks import task_of

ROUTERS = {
    "softmax_topk": {},
    "topk_softmax": {},
    "sigmoid_bias": {},
    "group_limited": {"experts": 6, "groups": 3, "limited_groups": 2},
    "top1": {"top_k": 1},
}


def weights_of(sim, seeds):
    weights = initial_weights(sim, torch.tensor(seeds))
    return {n: w.requires_grad_(n != "bias") for n, w in weights.items()}


def exact_model(sim, weights):
    return load(weights, arithmetic(Numerics(), torch.arange(len(weights["head"]))), sim)


def slopes(done, weights, seed=0):
    edges = torch.randn(done.logp.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vjp(done, edges, weights)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("mode", MODES)
def test_the_probabilities_of_all_responses_add_up_to_one_for_every_prompt(router, mode, small, make_scene, same):
    scene = make_scene(small(router=router, staleness=1, **ROUTERS[router]))
    for chance in (scene.measure, scene.probability(mode)):
        per_prompt = [float(chance[0, scene.responses.prompt == x].sum()) for x in range(2)]
        same(per_prompt, [0.5, 0.5])


@pytest.mark.parametrize("mode", MODES)
def test_the_score_function_has_mean_zero_under_its_own_policy(mode, small, make_scene):
    scene = make_scene(small(staleness=1))
    weight = scene.probability(mode)[..., None].expand(-1, -1, scene.world.horizon)
    size = objectives.gradient(scene, mode).norm()
    assert float(objectives.direction(scene, mode, weight).norm()) < 1e-12 * float(size)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("mode", ["live", "replayed"])
def test_gradients_agree_with_finite_differences(router, mode, small):
    sim = small(router=router, horizon=2, width=3, expert_width=2, prompts=1, prompt_length=1, **ROUTERS[router])
    tree = grow(sim)
    weights = weights_of(sim, [4])
    trained = [n for n in weights if n != "bias"]
    foreign = run(exact_model(sim, weights_of(sim, [5])), tree).routes
    assert not torch.equal(foreign.contexts, run(exact_model(sim, weights), tree).routes.contexts)

    def logp(*leaves):
        model = exact_model(sim, weights | dict(zip(trained, leaves, strict=True)))
        return run(model, tree, Given(routes=foreign) if mode == "replayed" else None).logp

    assert torch.autograd.gradcheck(logp, [weights[n] for n in trained], fast_mode=True)


@pytest.mark.parametrize(
    ("kind", "router"),
    [(kind, "softmax_topk") for kind in ("exact", "bf16", "fp8", "int8", "split", "batch")]
    + [("noise", "sigmoid_bias")],
)
def test_a_member_is_the_same_alone_and_in_an_ensemble(kind, router, small, same):
    sim = small(router=router, numerics={"kind": kind, "scale": 0.3})
    tree = grow(sim)
    seeds, draws = torch.tensor([3, 9, 1]), torch.tensor([5, 0, 2])
    scales = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)

    def scene(pick):
        return build(sim, tree, engines(sim, draws[pick], scales[pick]), initial_weights(sim, seeds[pick]))

    whole = scene(slice(None))
    for member in range(3):
        alone = scene(slice(member, member + 1))
        assert torch.equal(whole.mu_old.routes.contexts[member], alone.mu_old.routes.contexts[0])
        same(whole.mu_old.logp[member], alone.mu_old.logp[0])
        for mode in MODES:
            same(objectives.gradient(whole, mode)[member], objectives.gradient(alone, mode)[0])


def test_members_with_other_seeds_are_other_policies(small):
    sim = small()
    a, b = initial_weights(sim, torch.tensor([0, 1]))["up"]
    assert not torch.isclose(a, b).any()


@pytest.mark.parametrize("router", ["softmax_topk", "topk_softmax", "sigmoid_bias"])
def test_renaming_the_experts_changes_nothing(router, small, same):
    sim = small(router=router, experts=5)
    tree = grow(sim)
    order = torch.tensor([3, 0, 4, 2, 1])
    weights = initial_weights(sim, torch.tensor([0]))
    renamed = weights | {"router": weights["router"][..., order]}
    renamed |= {n: weights[n][:, :, order] for n in ("up", "down")}
    renamed |= {n: w[..., order] for n, w in weights.items() if n == "bias"}
    done, again = run(exact_model(sim, weights), tree), run(exact_model(sim, renamed), tree)
    assert torch.equal(order[again.routes.contexts.long()], done.routes.contexts.long())
    same(again.logp, done.logp)


@pytest.mark.parametrize("router", ROUTERS)
def test_replaying_one_s_own_routes_is_the_identity_bit_for_bit(router, small):
    sim = small(router=router, **ROUTERS[router])
    tree = grow(sim)
    weights = weights_of(sim, [0, 1])
    model = exact_model(sim, weights)
    live = run(model, tree)
    again = run(model, tree, Given(routes=live.routes))
    assert torch.equal(again.logp, live.logp)
    assert again.routes.equal(live.routes)
    assert torch.equal(slopes(again, weights), slopes(live, weights))


@pytest.mark.parametrize("kind", ["bf16", "fp16", "fp8", "int8", "split", "noise", "gate_order"])
def test_a_fresh_target_that_replays_its_own_routes_is_the_natural_one_in_any_precision(kind, small, make_scene):
    scene = make_scene(small(training_numerics={"kind": kind}))
    for mode in ("disabled", "R2"):
        assert torch.equal(scene.target[mode].logp.detach(), scene.old["disabled"].logp)
    assert torch.equal(objectives.gradient(scene, "R2"), objectives.gradient(scene, "disabled"))


def test_rows_of_minus_one_route_live(small):
    sim = small()
    tree = grow(sim)
    model = exact_model(sim, weights_of(sim, [0]))
    live = run(model, tree)
    nobody = Routes(
        contexts=torch.full_like(live.routes.contexts, -1),
        leads=tuple(torch.full_like(lead, -1) for lead in live.routes.leads),
    )
    assert torch.equal(run(model, tree, Given(routes=nobody)).logp, live.logp)


@pytest.mark.parametrize("router", ROUTERS)
def test_replaying_foreign_experts_keeps_a_gradient_on_the_router(router, small):
    sim = small(router=router, **ROUTERS[router])
    tree = grow(sim)
    weights = weights_of(sim, [0])
    foreign = run(exact_model(sim, weights_of(sim, [1])), tree).routes
    done = run(exact_model(sim, weights), tree, Given(routes=foreign))
    assert torch.equal(done.routes.contexts, foreign.contexts)
    (found,) = torch.autograd.grad(done.logp[..., 1].sum(), weights["router"])
    assert (found.abs().amax((0, 2, 3)) > 1e-6).all()


@pytest.mark.parametrize("where", ["prompt", "first context"])
def test_another_expert_early_on_changes_every_later_log_prob(where, small):
    sim = small()
    tree = grow(sim)
    model = exact_model(sim, weights_of(sim, [0]))
    live = run(model, tree)
    routes = Routes(contexts=live.routes.contexts.clone(), leads=tuple(lead.clone() for lead in live.routes.leads))
    row = routes.leads[0][0, 0, 0, 0] if where == "prompt" else routes.contexts[0, 0, 0]
    row[0] = next(e for e in range(sim.experts) if e not in row)
    moved = (run(model, tree, Given(routes=routes)).logp - live.logp).abs().amax(-1)[0] > 1e-9
    owner = torch.cat([torch.arange(n) // (sim.vocab - 1) ** t for t, n in enumerate(tree.widths)])
    assert torch.equal(moved, owner == 0)


def test_a_policy_says_the_same_token_by_token_as_over_the_tree(small, same):
    sim = small()
    tree = grow(sim)
    model = exact_model(sim, initial_weights(sim, torch.tensor([0])))
    whole = gather(run(model, tree).logp.detach(), tree.every)[0]
    row = len(tree.path) - 1
    state = initial_state(model, 1)
    tokens = [*tree.opening[tree.prompt[row]].tolist(), *tree.every.tokens[row].tolist()]
    found = []
    for token, following in itertools.pairwise(tokens):
        done = step(model, state, torch.tensor([token]), torch.zeros(1, dtype=torch.int64))
        state = done.state
        found.append(float(done.logp[0, 0, following]))
    same(found[sim.prompt_length - 1 :], whole[row])


def test_weights_survive_being_flattened(small):
    weights = initial_weights(small(router="sigmoid_bias"), torch.tensor([0, 1]))
    again = unflatten(flatten(weights), weights)
    assert list(again) == list(weights)
    assert all(torch.equal(again[n], weights[n]) for n in weights)
    assert set(weights) - set(trainable(weights)) == {"bias"}
    moved = unflatten(flatten(weights) + 1, weights)
    assert torch.equal(moved["bias"], weights["bias"])
    assert all(torch.equal(moved[n], weights[n] + 1) for n in trainable(weights))


def test_logits_start_at_their_documented_sizes():
    sim = Sim(width=64, expert_width=64, experts=32, vocab=64, sharpness=1.5, horizon=1, prompts=30, layers=1)
    tree = grow(sim)
    model = exact_model(sim, initial_weights(sim, torch.arange(4)))
    done = run(model, tree)
    assert float((done.router_logp - done.router_logp.mean(-1, keepdim=True)).std()) == pytest.approx(1.0, rel=0.1)
    assert float((done.logp - done.logp.mean(-1, keepdim=True)).std()) == pytest.approx(1.5, rel=0.1)


def test_temperature_divides_the_logits(small, same):
    sim = small(temperature=0.5)
    tree = grow(sim)
    weights = initial_weights(sim, torch.tensor([0]))
    hot = run(exact_model(sim.model_copy(update={"temperature": 1.0}), weights), tree).logp
    same(run(exact_model(sim, weights), tree).logp, (2 * hot).log_softmax(-1))


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("replayed", [False, True])
def test_checkpointed_chunks_change_neither_values_nor_gradients(rows, replayed, small, same, monkeypatch):
    sim = small(training_numerics={"kind": "noise", "scale": 0.1})
    tree = grow(sim)
    weights = weights_of(sim, [0, 1])
    model = load(weights, arithmetic(sim.training_numerics, torch.arange(2)), sim)
    given = Given(routes=run(exact_model(sim, weights_of(sim, [7, 8])), tree).routes) if replayed else None
    whole = run(model, tree, given)
    expected = slopes(whole, weights)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 2 * rows)
    chunked = run(model, tree, given)
    same(chunked.logp, whole.logp)
    same(chunked.margin, whole.margin)
    assert torch.equal(chunked.routes.contexts, whole.routes.contexts)
    same(slopes(chunked, weights), expected)
    same(slopes(chunked, weights), expected)  # the graph is kept
    with torch.no_grad():
        same(run(model, tree, given).logp, whole.logp)


def test_chunks_are_as_small_as_they_are_told(small, monkeypatch):
    sim = small()
    tree = grow(sim)
    seen = []
    original = chunks.step

    def counting(model, state, tokens, keys, replay=None):
        seen.append(len(tokens))
        return original(model, state, tokens, keys, replay)

    monkeypatch.setattr(chunks, "step", counting)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 3)
    with torch.no_grad():
        run(exact_model(sim, weights_of(sim, [0])), tree)
    assert max(seen) == 3
    assert sum(seen) == tree.contexts + tree.prompts * (sim.prompt_length - 1)


@pytest.mark.parametrize("kind", ["exact", "noise", "bf16", "fp8", "batch"])
def test_an_engine_says_the_same_of_a_prefix_whatever_else_it_runs(kind, small, same):
    sim = small(numerics={"kind": kind, "scale": 0.3}, prompts=3)
    weights = initial_weights(sim, torch.tensor([0]))
    prompts = torch.tensor([3, 1, 2])
    model = load(weights, engines(sim, torch.arange(1)).mu, sim)
    together = run(model, plant(task_of(sim), prompts))
    levels = [3 * 2**t for t in range(3)]
    for index in range(3):
        alone = run(model, plant(task_of(sim), prompts[index : index + 1]))
        rows = torch.cat(
            [sum(levels[:t]) + torch.arange(2**t) + index * 2**t for t in range(3)]
        )  # this prompt's contexts, level by level
        same(alone.logp, together.logp[:, rows])
        assert torch.equal(alone.routes.contexts, together.routes.contexts[:, rows])


def test_the_vector_jacobian_product_is_that_of_each_member(small, same):
    sim = small()
    tree = grow(sim)
    weights = weights_of(sim, [0, 1])
    done = run(exact_model(sim, weights), tree)
    edges = torch.randn(done.logp.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = vjp(done, edges, weights)
    for member in range(2):
        grads = torch.autograd.grad((edges * done.logp)[member].sum(), list(weights.values()), retain_graph=True)
        same(found[member], torch.cat([g[member].flatten() for g in grads]))


def test_a_direction_is_a_derivative_of_j_along_itself(small, make_scene, same):
    """J at θ ± ε v, so that the sign and the size of the gradient are those of the objective, replay included."""
    sim = small()
    scene = make_scene(sim)
    for mode in ("disabled", "R3"):
        given = scene.replay(mode)
        g = objectives.gradient(scene, mode)
        v = g / g.norm()

        def j(step, given=given, v=v):
            moved = unflatten(flatten(scene.weights).detach() + step * v, scene.weights)
            return objectives.value(run(exact_model(sim, moved), scene.world, given).logp, scene.world)

        same((j(1e-5) - j(-1e-5)) / 2e-5, g.norm()[None], 1e-7)
