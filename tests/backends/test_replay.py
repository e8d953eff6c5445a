"""Record and replay in torchtitan's router, bit for bit."""

import dataclasses

import pytest
import torch

from firstorder.backends.torchtitan import adapter, model, replay
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.torchtitan.packing import pack
from firstorder.core.errors import DataError
from firstorder.core.routing import Replay, flips

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
