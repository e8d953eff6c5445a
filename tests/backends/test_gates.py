"""Gate weights from both engines beside their experts, and rules by which experts give way, in three real steps."""

import json
from types import SimpleNamespace

import pytest
import torch

from firstorder.backends import checks
from firstorder.backends.conversation import joined
from firstorder.backends.pair import EnginePair
from firstorder.backends.promote import hardware, plan
from firstorder.backends.rollouts import Response, collate
from firstorder.backends.tasks import sums
from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.torchtitan.trainer import Trainer
from firstorder.backends.vllm.arguments import prepare
from firstorder.backends.vllm.config import Vllm
from firstorder.cli.main import run
from firstorder.core.errors import ConfigError, DataError
from firstorder.core.method.recipe import Recipe
from firstorder.core.settings import toml

ENGINES = [
    "schedule.minibatches=2",
    *("schedule.steps=3", "schedule.prompts=4", "schedule.group_size=4", "optimizer.lr=1e-3", "task.kind=sums"),
    *("torchtitan.dtype=float32", "torchtitan.pack_length=64", "torchtitan.evaluate_every=0"),
    *("vllm.dtype=bfloat16", "vllm.max_prompt=40", "vllm.kv_cache_mib=16"),
]
APART = "vllm.kv_cache_dtype=fp8_e5m2"  # engines whose routes differ at many rows, some of them by wide margins
MOVED = "optimizer.lr=0.02"  # far enough within a step that a router's choice at the start of it is no longer close
RULES = {
    "total-recall": {"gates": True},
    f"minirl-r3-margin router_replay.margin=0.02 {APART}": {"replaced": True},
    f"minirl-r3-condition router_replay.condition=0.9 {APART}": {"replaced": True},
    f"minirl-r2-n2 router_replay.gates=replayed {MOVED}": {"gates": True},
    f"minirl-r2-n2 router_replay.condition=0.9 {MOVED}": {"replaced": True},
    f"minirl-r2-n2 router_replay.margin=0.02 {MOVED}": {"replaced": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shape, write_model):
    return write_model(tmp_path_factory.mktemp("model"), shape)


def lines(out, name):
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("named", RULES)
def test_three_steps_on_both_engines_show_that_a_rule_acted(named, folder, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sums, "verify", lambda question, response: float(len(response) % 2))  # some reward, some none
    (name, *more), expected = named.split(), {"replaced": False, "gates": False} | RULES[named]
    words = [word for one in [*ENGINES, f"torchtitan.model={folder}", *more] for word in ("--set", one)]
    out = tmp_path / "run"
    assert run(["train", name, "--strict", "--backend", "torchtitan", *words, "--out", str(out)]) == 0
    assert ("give the router no gradient" in capfd.readouterr().err) == expected["gates"]
    receipts, metrics = lines(out, "receipts"), lines(out, "metrics")
    assert len(receipts) == 3
    for each in receipts:
        replayed, replaced, live = (each[f"replay/rows_{part}"] for part in ("replayed", "replaced", "live"))
        assert (replayed + replaced, live) == (pytest.approx(1), 0)
        assert replayed > 0
        assert (replaced > 0) == expected["replaced"]
        assert each["replay/rows_changed"] > 0
        assert each["inert/router_replay"] == 0
    assert all(each["update/grad_norm"] > 0 for each in metrics)
    apart = [each.get("route/gates_apart") for each in metrics]
    if name == "total-recall":
        assert all(0 < x < 0.05 for x in apart)  # one engine in bfloat16, the other in float32
    else:
        assert apart == [None] * 3


@pytest.fixture(scope="module")
def trainer(folder, tmp_path_factory):
    settings = Torchtitan(model=str(folder), dtype="float32", pack_length=256, microbatch_rows=4)
    return Trainer(settings, Recipe(), 1.0, tmp_path_factory.mktemp("checkpoints"))


def batch_of(prompts, responses):
    return collate(prompts, responses, [float(i % 2) for i in range(len(prompts))], [0] * len(prompts), 4, 2, 8)


def test_the_gates_that_vllm_returns_are_those_of_the_routers_with_and_without_a_cached_prefix(folder, trainer):
    wanted = Vllm(dtype="float32", max_prompt=220, kv_cache_mib=16)
    prepare(wanted)
    from firstorder.backends.vllm.engine import InProcessEngine

    longer = sums.encode("17+25=7+5=12,1+2+1=4>42," * 8)  # prefixes are cached in blocks of 128 tokens
    prompts = [longer, *(sums.encode(sums.prompt(i)) for i in range(5)), longer]
    made = [InProcessEngine(wanted, str(folder), [sums.END], 0, gates=gates) for gates in (False, True)]
    plain, first, again = (engine.generate(prompts, range(7)) for engine in (made[0], made[1], made[1]))
    for gated in (first, again):  # all of the long prompt but its last block came from the cache the second time
        assert [one.tokens for one in gated] == [one.tokens for one in plain]
        assert all(torch.equal(one.routes, two.routes.to(torch.int16)) for one, two in zip(gated, plain, strict=True))
        batch = batch_of(prompts, gated)
        live = trainer.score(batch, gates=True)
        run = (batch.routes >= 0).all(-1)
        order, own = batch.routes.sort(-1), live.routes.sort(-1)
        assert torch.equal(order.values, own.values)
        apart = batch.gates.gather(-1, order.indices) - live.gates.gather(-1, own.indices)
        assert float(apart[run].abs().max()) < 2e-5
        assert (batch.gates[run].sum(-1) - 1).abs().max() < 1e-6


def test_what_is_no_gate_of_an_expert_is_refused():
    prepare(Vllm())
    from firstorder.backends.vllm import gates

    ids, weights = torch.tensor([[[3, 1]], [[0, 65535]]]), torch.tensor([[[0.75, 0.25]], [[0.5, 0.5]]])

    def unpacked(changed, normalised=True):
        return gates.unpacked(gates.packed(ids, changed).view(torch.uint64), normalised=normalised)

    found = unpacked(weights)
    assert torch.equal(found[0], ids.to(torch.int16))
    assert torch.equal(found[1], weights)
    assert torch.equal(unpacked(0.5 * weights, normalised=False)[1], 0.5 * weights)
    for changed, message in (
        (0.5 * weights, r"do not sum to 1 at 2 of 2 \(token, layer\), first \[0.375, 0.125\]"),
        (weights.index_fill(0, torch.tensor(1), torch.nan), "are not finite, or negative at 1 of 2"),
        (torch.zeros_like(weights), "do not sum to 1"),  # a slot that no router wrote
    ):
        with pytest.raises(DataError, match=message):
            unpacked(changed)
    with pytest.raises(DataError, match=r"routes of torch\.uint8, without gate weights"):
        gates.unpacked(ids.to(torch.uint8), normalised=True)


def test_a_router_in_a_fused_kernel_is_refused():
    prepare(Vllm())
    from firstorder.backends.vllm import gates

    layer = SimpleNamespace(router=object(), _quant_method=SimpleNamespace(is_monolithic=True))
    with pytest.raises(ConfigError, match="a fused kernel makes them in place of object"):
        gates._listen(layer)


def test_gates_go_where_routes_go():
    def said(rows, gates=True):
        weights = torch.arange(rows * 8).view(rows, 4, 2).float() if gates else None
        ids = torch.tensor([0, 1]).expand(rows, 4, 2)
        return Response(tokens=[5, 6], logp=[-1.0, -1.0], routes=ids, ended=True, gates=weights)

    whole = joined(said(4), [7], said(7))  # the later request ran 3 prompt tokens, 2, 1 of the task, and 2 but the last
    assert torch.equal(whole.gates, torch.cat([said(4).gates, said(7).gates[4:]]))
    assert joined(said(4, gates=False), [7], said(7)).gates is None
    found = batch_of([[2, 3, 4]], [whole])
    assert torch.equal(found.gates[0, :7], whole.gates)
    assert batch_of([[2, 3, 4]], [said(4, gates=False)]).gates is None
    with pytest.raises(DataError, match=r"`gates` of a response must be \[4, 4, 2\], as its routes are, got none"):
        batch_of([[2, 3, 4]] * 2, [said(4), said(4, gates=False)])


def recipe_of(name, *changes):
    return toml.build(Recipe, toml.override(toml.read(name), changes))


def test_servers_send_no_gates_and_are_refused_before_anything_starts(folder, shape):
    titan, task = Torchtitan(model=str(folder), pack_length=256), TaskSettings(kind="sums")
    served = Vllm(servers=("http://127.0.0.1:1",))
    message = "a server of vLLM sends ids of experts alone; sample in one process"
    with pytest.raises(ConfigError, match=message):
        checks.check(recipe_of("total-recall"), titan, served, task)
    with pytest.raises(ConfigError, match=message):
        plan.plan(shape, recipe_of("total-recall"), titan, Vllm(), 8, hardware.gpu("h100"))
    checks.check(recipe_of("total-recall"), titan, Vllm(), task)
    checks.check(recipe_of("total-recall", "router_replay.mode=R2"), titan, served, task)


def test_a_step_with_gates_that_did_not_come_is_refused(trainer, folder):
    run_settings = SimpleNamespace(recipe=recipe_of("total-recall"))
    pair = EnginePair(trainer, SimpleNamespace(emulated=False), None, run_settings)
    one = Response(tokens=[5, 6], logp=[-1.0, -1.0], routes=torch.tensor([0, 1]).expand(4, 4, 2), ended=True)
    with pytest.raises(DataError, match="needs gate weights beside the routes, and the rollout engine sent none"):
        pair.score(batch_of([[2, 3, 4]] * 2, [one] * 2))
