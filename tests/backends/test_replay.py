"""Record and replay in torchtitan's router, bit for bit."""

import contextlib
import dataclasses

import pytest
import torch

from firstorder.backends.pair import EnginePair, RunSettings
from firstorder.backends.torchtitan import adapter, model, replay, trainer
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.torchtitan.packing import pack
from firstorder.backends.weights import open_weights
from firstorder.core.errors import DataError, ReplayError
from firstorder.core.method.recipe import Recipe
from firstorder.core.routing import Replay, flips
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm
from firstorder.core.training.batch import RolloutBatch
from firstorder.core.training.loop import train

LENGTHS = torch.tensor([9, 24, 17, 30])


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request):
    """bfloat16 runs torchtitan's own grouped matrix products."""
    return request.param


@pytest.fixture(scope="module", params=["none", "selective", "full"])
def checkpointing(request):
    return request.param


def build(shape, **changes):
    settings = Torchtitan(pack_length=32, **changes)
    adapter.start_process_group()
    torch.manual_seed(0)
    built = model.build(shape, settings, *model.layout(settings, 1))
    with torch.no_grad():
        for router in replay.routers(built):
            router.gate.weight.mul_(30.0)  # initial routers barely decide; these do
    return built


@pytest.fixture(scope="module")
def plain(shape, dtype):
    return build(shape, dtype=dtype)


@pytest.fixture(scope="module")
def trained(shape, dtype, checkpointing):
    return build(shape, dtype=dtype, activation_checkpoint=checkpointing)


@pytest.fixture(scope="module")
def batch():
    g = torch.Generator().manual_seed(1)
    return pack(torch.randint(2, 32, (4, 30), generator=g), LENGTHS, 32)


def run(built, packed, ids=None, record=False):
    """Logits, every gradient by name, and the record if one is wanted."""
    built.zero_grad()
    masks = adapter.attention_masks(built, packed.positions)
    with replay.replaying(built, given(ids)):
        if record:
            with replay.recording(built) as found:
                logits = built(packed.tokens, positions=packed.positions, attention_masks=masks)
        else:
            found = None
            logits = built(packed.tokens, positions=packed.positions, attention_masks=masks)
        g = torch.Generator().manual_seed(2)
        (logits * torch.randn(logits.shape, generator=g)).sum().backward()
    grads = {
        name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", ""): p.grad.full_tensor().clone()
        for name, p in built.named_parameters()
    }
    return logits.detach(), grads, found


def given(ids, gates=None, **rule):
    """All of these experts, or none; by a rule, if one is given; a replay as it is."""
    if ids is None or isinstance(ids, Replay):
        return ids
    return Replay(ids=ids, gates=gates, **{key: torch.tensor([[value]]).double() for key, value in rule.items()})


def bitwise(a, b):
    return torch.equal(a[0], b[0]) and all(torch.equal(a[1][name], b[1][name]) for name in a[1])


def foreign(ids, experts):
    """Another choice at every token: each expert's neighbour, still distinct."""
    return (ids + 1) % experts


def test_recording_changes_nothing(plain, trained, batch):
    assert bitwise(run(trained, batch, record=True), run(plain, batch))


def test_replaying_ones_own_routes_changes_no_bit(plain, trained, batch):
    live = run(plain, batch, record=True)
    assert bitwise(run(trained, batch, ids=live[2].ids.to(torch.int16)), live)


def test_all_rows_live_is_no_replay(plain, trained, batch):
    live = run(plain, batch, record=True)
    assert bitwise(run(trained, batch, ids=torch.full_like(live[2].ids, -1)), live)


def test_foreign_routes_are_used_and_the_router_keeps_its_gradient(plain, trained, batch, shape):
    live = run(plain, batch, record=True)
    ids = foreign(live[2].ids, shape.num_experts)
    replayed, reference = run(trained, batch, ids=ids, record=True), run(plain, batch, ids=ids)
    assert torch.equal(replayed[2].ids, ids)
    assert bitwise(replayed, reference)
    assert not torch.equal(replayed[0], live[0])
    gates = [g for name, g in replayed[1].items() if "router.gate" in name]
    assert len(gates) == shape.num_hidden_layers
    assert all(g.abs().max() > 0 for g in gates)


def test_bfloat16_gradients_point_where_those_of_float32_do(shape, batch):
    exact, rounded = build(shape, dtype="float32"), build(shape, dtype="bfloat16")
    routes = run(exact, batch, record=True)[2].ids
    expected, found = (run(built, batch, ids=routes)[1] for built in (exact, rounded))
    for name, gradient in expected.items():
        other = found[name]
        assert other.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(other.flatten(), gradient.flatten(), dim=0) > 0.99, name


def test_at_its_ends_a_rule_is_the_live_run_and_the_whole_replay_bit_for_bit(plain, trained, batch, shape):
    live = run(plain, batch, record=True)
    other = foreign(live[2].ids, shape.num_experts)
    whole, untied = run(plain, batch, ids=other), torch.where(live[2].margin[..., None] > 0, other, -1)
    for rule in ({"condition": 1.0}, {"margin": 1e-30}):
        assert bitwise(run(trained, batch, ids=given(untied, **rule)), live)  # in bfloat16 some scores are the same
    for rule in ({"condition": 0.0}, {"margin": 2.0}):
        assert bitwise(run(trained, batch, ids=given(other, **rule)), whole)


def test_between_them_some_experts_give_way_and_some_stay(plain, trained, batch, shape):
    live = run(plain, batch, record=True)[2]
    other, rows = foreign(live.ids, shape.num_experts), float((batch.positions > 0).sum())
    for rule in ({"condition": 0.3}, {"margin": 0.2}, {"condition": 0.3, "margin": 0.2}):
        found = run(trained, batch, ids=given(other, **rule), record=True)[2]
        first, close = found.ids[:, :, 0], (live.margin[:, :, 0] < rule.get("margin", 2.0))[..., None]
        if "condition" not in rule:
            assert torch.equal(first, torch.where(close, other[:, :, 0], live.ids[:, :, 0]))
        counts = did(trained, batch, given(other, **rule))
        for layer in range(shape.num_hidden_layers):
            assert counts["replayed"][layer] + counts["replaced"][layer] == rows
        assert 0 < counts["replaced"][0] < rows
        assert counts["replaced"][0] == float((flips(first, other[:, :, 0]) & (batch.positions > 0)).sum())


def test_gates_that_are_replayed_are_constants(plain, trained, batch, shape):
    with torch.no_grad(), replay.recording(plain, gates=True) as live:
        masks = adapter.attention_masks(plain, batch.positions)
        plain(batch.tokens, positions=batch.positions, attention_masks=masks)
    whole, own = run(plain, batch), run(trained, batch, ids=given(live.ids, live.gates))
    assert torch.equal(own[0], whole[0])
    for name, gradient in own[1].items():
        assert (gradient.abs().max() == 0) == ("router.gate" in name), name
    swapped = run(trained, batch, ids=given(live.ids, live.gates.flip(-1)))
    assert not torch.equal(swapped[0], whole[0])
    some = torch.where(batch.positions[..., None, None] % 2 == 0, live.gates, torch.nan)
    half = run(trained, batch, ids=given(live.ids, some))
    assert torch.equal(half[0], whole[0])
    assert all(g.abs().max() > 0 for name, g in half[1].items() if "router.gate" in name)
    assert all(router.gates is None for router in replay.routers(plain))


def test_a_compiled_model_records_and_replays_as_the_plain_one(shape, monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "disable", False)  # vLLM in this process, if a test started it, set it
    plain, compiled = (build(shape, dtype="bfloat16", compile=kind) for kind in ("none", "aot_eager"))
    tokens = torch.randint(2, 32, (4, 30), generator=torch.Generator().manual_seed(1))
    batches = [pack(tokens[:rows], LENGTHS[4 - rows :], 32) for rows in (1, 2, 4, 3)]  # 1, 2 and more compile apart
    for batch in batches:
        live = run(plain, batch, record=True)
        assert bitwise(run(compiled, batch, record=True), live)
        ids = foreign(live[2].ids, shape.num_experts)
        assert bitwise(run(compiled, batch, ids=ids), run(plain, batch, ids=ids))
        assert did(compiled, batch, ids) == did(plain, batch, ids)
    batch, ids = batches[-1], foreign(run(plain, batches[-1], record=True)[2].ids, shape.num_experts)
    for ruled in (given(ids, condition=0.3, margin=0.2), given(ids, torch.full(ids.shape, 0.5))):
        assert bitwise(run(compiled, batch, ids=ruled), run(plain, batch, ids=ruled))
    for batch in batches:
        masks, ids = adapter.attention_masks(compiled, batch.positions), torch.ones(*batch.tokens.shape, 4, 2).long()
        with torch.no_grad(), replay.replaying(compiled, Replay(ids=ids)), replay.recording(compiled) as found:
            compiled(batch.tokens, positions=batch.positions, attention_masks=masks)
        assert torch.equal(found.ids, ids)


def did(built, packed, ids):
    """What the routers say that they did in a forward and its backward, which runs it again under checkpointing."""
    masks, found = adapter.attention_masks(built, packed.positions), []
    with replay.replaying(built, given(ids)):
        logits = built(packed.tokens, positions=packed.positions, attention_masks=masks)
        found = [replay.witnessed(built, given(ids), packed.positions > 0)]
        logits.square().sum().backward()
        found.append(replay.witnessed(built, given(ids), packed.positions > 0))
    assert all(router.live is None for router in replay.routers(built))
    first, again = ({name: rows.tolist() for name, rows in counts.items()} for counts in found)
    assert first == again
    return first


def test_routers_witness_what_they_replayed_and_what_that_changed(plain, trained, batch, shape):
    live, rows = run(plain, batch, record=True)[2].ids, float((batch.positions > 0).sum())
    layers = shape.num_hidden_layers
    own, other = live.to(torch.int16), foreign(live, shape.num_experts).to(torch.int16)
    none, every = [0.0] * layers, [rows] * layers
    assert did(trained, batch, own) == {"replayed": every, "replaced": none, "live": none, "changed": none}
    found = did(trained, batch, other)
    assert (found["replayed"], found["replaced"]) == (every, none)
    assert found["changed"][0] == float((flips(live, other)[:, :, 0] & (batch.positions > 0)).sum()) > 0
    assert did(trained, batch, None) == {"replayed": none, "replaced": none, "live": every, "changed": none}
    some = torch.where(batch.positions[..., None, None] % 2 == 0, other, -1)
    found = did(trained, batch, some)
    assert found["replayed"] == [float((batch.positions[batch.positions > 0] % 2 == 0).sum())] * layers
    assert all(c <= r for c, r in zip(found["changed"], found["replayed"], strict=True))


def test_a_router_that_says_nothing_has_replayed_nothing(plain, batch, monkeypatch):
    ids = torch.zeros(*batch.tokens.shape, 4, 2, dtype=torch.int16) + torch.tensor([0, 1], dtype=torch.int16)
    silent, stock = replay.routers(plain)[2], adapter.TokenChoiceTopKRouter.forward
    monkeypatch.setattr(silent, "forward", lambda x, bias=None: stock(silent, x, bias))
    rows = float((batch.positions > 0).sum())
    assert did(plain, batch, ids)["replayed"] == [rows, rows, 0.0, rows]
    with pytest.raises(DataError, match="the routers of MoE layers 2 record no routes: they were replaced after"):
        run(plain, batch, record=True)
    assert not any(router.recording for router in replay.routers(plain))


@pytest.fixture(scope="module")
def engines(shape, write_model, tmp_path_factory):
    """A training engine, and a backend around it whose rollouts are one fixed batch with routes of another engine."""
    folder = write_model(tmp_path_factory.mktemp("model"), shape)
    settings = Torchtitan(model=str(folder), dtype="float32", pack_length=32, microbatch_rows=2)
    held = trainer.Trainer(settings, Recipe(), 1.0, tmp_path_factory.mktemp("checkpoints"))
    g = torch.Generator().manual_seed(3)
    lengths = torch.tensor([24, 7, 15, 9, 22, 11, 18, 5])
    position = torch.arange(24)
    held_out = position < lengths[:, None]
    blank = {"logp_mu": torch.zeros(8, 24, dtype=torch.float64), "rewards": torch.rand(8, generator=g).double()}
    batch = RolloutBatch(
        tokens=torch.where(held_out, torch.randint(2, 32, (8, 24), generator=g), 0),
        mask=held_out & (position >= 3),
        lengths=lengths,
        groups=torch.arange(8) // 4,
        **blank,
    )
    live = held.score(batch)
    flipped = torch.rand(8, 24, shape.num_hidden_layers, generator=g) < 0.2
    mu = torch.where(flipped[..., None] & (live.routes >= 0), (live.routes + 1) % shape.num_experts, live.routes)
    batch = dataclasses.replace(batch, logp_mu=live.logp.where(batch.mask, 0.0).clamp(max=0.0), routes=mu)
    return held, batch, folder


def trained_once(engines, name, *more, n=1):
    """The receipts of a step of a recipe."""
    held, batch, folder = engines
    settings = ["schedule.steps=1", "schedule.prompts=2", "schedule.group_size=4", f"schedule.minibatches={n}", *more]
    recipe = toml.build(Recipe, toml.override(toml.read(name), settings))
    held.recipe, held.optimizer = recipe, trainer.optimizer(recipe.optimizer, held.model)
    held.rate = trainer.learning_rate(0, n, held.optimizer)
    held.names.read(open_weights(folder, held.shape))
    run = RunSettings(
        recipe=recipe, seed=0, evaluate_every=0, evaluate_prompts=1, probe_prompts=1, probe_limit=1.0, longest=9
    )
    pair, logs = EnginePair(held, type("Engine", (), {"emulated": False}), None, run), []
    pair.rollout, pair.sync_weights = lambda step: batch, lambda: None
    train((Arm(recipe=recipe),), pair, on_step=logs.append)
    return {key: float(value) for key, value in logs[0].receipts.items()}


def test_a_step_records_what_replay_did(engines, shape):
    batch, layers = engines[1], range(shape.num_hidden_layers)
    rows = float((batch.lengths - 1).sum())
    found = {name: trained_once(engines, name) for name in ("minirl", "minirl-r2", "minirl-r3")}
    for name, acted in found.items():
        on = float(name != "minirl")
        assert (acted["replay/rows_replayed"], acted["replay/rows_live"]) == (on, 1 - on)
        assert acted["replay/rows_padded"] == pytest.approx(1 - rows / (8 * 24))
        assert (acted["replay/routes_arrived"], acted["replay/routes_missing"]) == (1.0, 0.0)
        assert acted["inert/router_replay"] == float(name == "minirl-r2")
        for layer in layers:
            assert acted[f"replay/rows_replayed_layer_{layer}"] == on
            assert (acted[f"replay/rows_changed_layer_{layer}"] > 0) == (name == "minirl-r3")
    engines[0].names.read(open_weights(engines[2], shape))
    apart = flips(engines[0].score(batch).routes, batch.routes)[:, :, 0].sum()  # above layer 0 the contexts part ways
    assert found["minirl-r3"]["replay/rows_changed_layer_0"] == pytest.approx(float(apart) / rows)
    moved = trained_once(engines, "minirl-r2", "optimizer.lr=0.05", n=2)
    assert moved["replay/rows_changed"] > 0
    assert moved["inert/router_replay"] == 0


def not_replaying(patch, engines):
    """Replay that is switched off on the way to the model."""
    patch.setattr(trainer, "replaying", lambda model, ids: contextlib.nullcontext())


def unpatched(patch, engines):
    """One router that is torchtitan's own again, in updates."""
    layer, stock = replay.routers(engines[0].model)[1], adapter.TokenChoiceTopKRouter.forward
    own = layer.forward
    patch.setattr(layer, "forward", lambda x, bias=None: (own if layer.recording else stock.__get__(layer))(x, bias))


def dropped(patch, engines):
    """Routes that do not come from the rollout engine to the trainer."""
    real = EnginePair.score

    def score(self, batch):
        return real(self, dataclasses.replace(batch, routes=torch.full_like(batch.routes, -1)))

    patch.setattr(EnginePair, "score", score)


def mistaken(patch, engines):
    """R2's routes under the flag of R3."""
    real = EnginePair.score

    def score(self, batch):
        scored, found = real(self, batch)
        return dataclasses.replace(scored, replay=Replay(ids=self.trainer.score(batch).routes)), found

    patch.setattr(EnginePair, "score", score)


FAULTS = {
    "off": (
        not_replaying,
        ("R2", "R3"),
        "0 were replayed, with rows lost in all 4 MoE layers; was a router replaced",
    ),
    "a router unpatched": (unpatched, ("R2", "R3"), "with rows lost in MoE layer 1; was a router replaced"),
    "routes dropped": (
        dropped,
        ("R3",),
        "no rows were given to replay in all 4 MoE layers; the routes of the rollout engine",
    ),
    "wrong routes": (mistaken, ("R3",), "none changed the router's choice, though the engines' routes differ at"),
}


@pytest.mark.parametrize(("fault", "mode"), [(name, mode) for name, fault in FAULTS.items() for mode in fault[1]])
def test_replay_that_does_not_take_place_stops_the_run(fault, mode, engines, monkeypatch):
    inject, _, said = FAULTS[fault]
    inject(monkeypatch, engines)
    with pytest.raises(ReplayError) as raised:
        trained_once(engines, f"minirl-{mode.lower()}", n=2)
    assert said in str(raised.value)
    assert str(raised.value).startswith(f"router_replay.mode = {mode} is on, ")
    assert (raised.value.code, str(raised.value).count("\n")) == (1, 0)


def test_the_order_of_two_experts_does_not_matter(plain, batch):
    live = run(plain, batch, record=True)
    assert bitwise(run(plain, batch, ids=live[2].ids.flip(-1)), live)


def test_replaying_some_rows_leaves_the_others_to_their_router(plain, batch, shape):
    live = run(plain, batch, record=True)[2].ids
    ids = torch.where(batch.positions[..., None, None] % 2 == 0, foreign(live, shape.num_experts), -1)
    used = run(plain, batch, ids=ids, record=True)[2].ids
    assert torch.equal(used[ids >= 0], ids[ids >= 0])
    assert torch.equal(
        used[:, :, 0][ids[:, :, 0] < 0], live[:, :, 0][ids[:, :, 0] < 0]
    )  # layer 0 sees no other's routes


def test_routes_of_a_response_do_not_depend_on_how_it_is_packed(plain, shape):
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, 32, (4, 30), generator=g)
    together = pack(tokens, LENGTHS, 32)
    alone = [pack(tokens[i : i + 1], LENGTHS[i : i + 1], 32) for i in range(4)]
    found = [packed.batch(run(plain, packed, record=True)[2].ids, -1) for packed in (together, *alone)]
    assert torch.equal(found[0], torch.cat(found[1:]))


def test_replay_ends_with_its_block_even_after_an_error(plain, batch):
    ids = torch.zeros(*batch.tokens.shape, 4, 2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="out of memory"), replay.replaying(plain, Replay(ids=ids)):
        raise RuntimeError("out of memory")
    assert all(router.replay is None for router in replay.routers(plain))


def config_of(kind, shape):
    """A Qwen3-MoE whose routers are of another family."""
    config = model.model_config(shape, 32)
    for layer in config.layers:
        changes = {"score_func": "sigmoid", "route_norm": True, "route_scale": 2.5}
        if kind == "group_limited":
            changes |= {"num_expert_groups": 4, "num_limited_groups": 2}
        layer.moe.router = dataclasses.replace(layer.moe.router, **changes)
        layer.moe.load_balance_coeff = 1e-3  # registers the selection bias of DeepSeek-V3
    adapter.substitute(config, torch.float32)
    replay.install(config)
    torch.manual_seed(0)
    built = config.build()
    with torch.no_grad():
        built.init_weights()
        for number, layer in enumerate(built.layers.values()):
            layer.moe.router.gate.weight.mul_(30.0)
            layer.moe.expert_bias_E.copy_(0.2 * torch.sin(torch.arange(8.0) + number))
    return built


@pytest.mark.parametrize("kind", ["sigmoid_bias", "group_limited"])
def test_the_routers_of_other_families_replay_bit_for_bit(kind, shape, batch):
    built = config_of(kind, shape)

    def grads_of(ids, record=False):
        built.zero_grad()
        masks = adapter.attention_masks(built, batch.positions)
        with replay.replaying(built, given(ids)), replay.recording(built) as found:
            logits = built(batch.tokens, positions=batch.positions, attention_masks=masks)
            logits.square().sum().backward()
        return logits.detach(), {n: p.grad.clone() for n, p in built.named_parameters()}, found

    live = grads_of(None)
    assert (live[2].margin >= 0).all()
    assert bitwise(grads_of(live[2].ids), live)
    if kind == "group_limited":
        assert ((live[2].ids // 2).unique().numel()) > 2  # more groups are used than one token may open
    other = grads_of(foreign(live[2].ids, shape.num_experts))
    assert not torch.equal(other[0], live[0])
    assert all(g.abs().max() > 0 for n, g in other[1].items() if "router.gate" in n)
