"""Emulated fp8 weights in the real vLLM: the values themselves, routers left alone, and weights that arrive."""

import pytest
import torch
from safetensors.torch import load_file
from servers import free_port, kill, start

from firstorder.backends.folder import write_weights
from firstorder.backends.pair import StaleWeightsError
from firstorder.backends.session import open_pair
from firstorder.backends.tasks import sums
from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.tasks.registry import open_tasks
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.vllm.config import LOW_PRECISION_LIMIT, Vllm
from firstorder.backends.vllm.served import ServedEngine
from firstorder.core.method.recipe import Recipe, Schedule


def tasks(folder):
    return open_tasks(TaskSettings(kind="sums"), folder, COMMON["max_prompt"])


SCHEMES = ("fp8_per_tensor", "fp8_per_block")
COMMON = {"max_prompt": 40, "kv_cache_mib": 16}
CODES = torch.arange(256, dtype=torch.uint8)
GRID = CODES.view(torch.float8_e4m3fn).double()
CODES, GRID = CODES[GRID.isfinite()], GRID[GRID.isfinite()]
PROMPTS = [sums.encode(sums.prompt(i)) for i in range(8)]


def nearest(x):
    """s times the number of e4m3 that is nearest to x / s, by looking at all of them; one s for all of x.

    x / s is a float32, as in the kernels; in the middle between two numbers, the one with the even mantissa is taken.
    """
    scale = (x.abs().max() / 448.0).float()
    apart = ((x.float() / scale).double()[..., None] - GRID).abs()
    closest = apart == apart.min(-1, keepdim=True).values
    return GRID[(closest * (2 - CODES % 2)).int().argmax(-1)] * float(scale)


def rounded_weight(w, scheme):
    """A matrix on the grid; the small models' are at most one block wide, and 128 rows of it are a block."""
    return nearest(w) if scheme == "fp8_per_tensor" else torch.cat([nearest(block) for block in w.split(128)])


def rounded_rows(x):
    return torch.stack([nearest(row) for row in x])


@pytest.fixture(scope="module", params=SCHEMES)
def pair(request, tmp_path_factory, shape, write_model):
    folder = write_model(tmp_path_factory.mktemp("model"), shape)
    titan = Torchtitan(model=str(folder), dtype="float32", pack_length=64)
    recipe = Recipe(schedule=Schedule(prompts=8, group_size=4))
    vllm = Vllm(quantization=request.param, **COMMON)
    return open_pair(recipe, titan, vllm, tasks(folder), tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def weights(pair):
    return load_file(f"{pair.trainer.settings.model}/model.safetensors")


def modules(pair):
    return dict(pair.engine._llm.apply_model(lambda model: [dict(model.named_modules())])[0][0])


def responses(engine):
    return [(one.tokens, one.logp, one.routes.tolist()) for one in engine.generate(PROMPTS, range(8))]


def test_matrices_are_rounded_and_routers_and_embeddings_are_not(pair):
    methods = {name: type(m.quant_method) for name, m in modules(pair).items() if hasattr(m, "quant_method")}
    rounded = {name for name, method in methods.items() if method.__module__.endswith("vllm.fp8")}
    places = {"self_attn.qkv_proj", "self_attn.o_proj", "mlp.experts.routed_experts"}
    assert rounded == {f"model.layers.{layer}.{place}" for layer in range(4) for place in places}
    assert {"model.layers.0.mlp.gate", "lm_head", "model.embed_tokens"} <= set(methods) - rounded


def test_a_product_is_that_of_the_rounded_matrices(pair, weights):
    scheme = pair.engine.settings.quantization
    layer = modules(pair)["model.layers.1.self_attn.qkv_proj"]
    own = torch.cat([weights[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]).bfloat16()
    x = torch.randn(5, own.shape[1], generator=torch.Generator().manual_seed(0))
    expected = rounded_rows(x) @ rounded_weight(own.float(), scheme).T
    found = layer.quant_method.apply(layer, x)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_experts_round_their_weights_what_enters_and_what_is_between(pair, weights):
    scheme = pair.engine.settings.quantization
    layer = modules(pair)["model.layers.2.mlp.experts.routed_experts"]
    g = torch.Generator().manual_seed(1)
    x = torch.randn(6, 64, generator=g)
    ids = torch.stack([torch.randperm(8, generator=g)[:2] for _ in range(6)])
    gates = torch.rand(6, 2, generator=g)
    found = layer.quant_method.apply(layer, x, gates, ids, None, None)
    for row in range(6):
        total = torch.zeros(64, dtype=torch.float64)
        for gate, expert in zip(gates[row], ids[row].tolist(), strict=True):
            name = f"model.layers.2.mlp.experts.{expert}"
            own = [weights[f"{name}.{part}_proj.weight"].bfloat16().float() for part in ("gate", "up", "down")]
            if scheme == "fp8_per_tensor":
                first, second = rounded_weight(torch.cat(own[:2]), scheme).chunk(2)
            else:
                first, second = (rounded_weight(w, scheme) for w in own[:2])
            entered = nearest(x[row])
            inner = torch.nn.functional.silu(first @ entered) * (second @ entered)
            total += float(gate) * (rounded_weight(own[2], scheme) @ nearest(inner))
        torch.testing.assert_close(found[row].double(), total, rtol=1e-4, atol=1e-4 * float(total.abs().max()))


def test_synchronised_weights_are_rounded_anew(pair, weights, shape, write_model, tmp_path):
    before = responses(pair.engine)
    moved = {name: w * (1.1 + 0.1 * torch.sin(torch.arange(w.numel()).view(w.shape))) for name, w in weights.items()}
    pair.engine.sync(moved.items(), 1)
    after = responses(pair.engine)
    assert after != before
    folder = write_model(tmp_path, shape)
    write_weights(folder, moved.items())
    from firstorder.backends.vllm.engine import InProcessEngine  # after the pair has set vLLM's variables

    assert responses(InProcessEngine(pair.engine.settings, str(folder), pair.tasks.ends, 0)) == after
    pair.sync_weights()
    assert responses(pair.engine) == before


def test_a_response_does_not_depend_on_its_batch(pair):
    alone = [pair.engine.generate([prompt], [i])[0] for i, prompt in enumerate(PROMPTS)]
    assert [(one.tokens, one.logp, one.routes.tolist()) for one in alone] == responses(pair.engine)


def test_a_run_says_that_it_is_emulated_and_routes_flip(pair):
    batch = pair.rollout(0)
    found = pair.score(batch)[1]
    assert float(found["rollout/emulated"][0] / found["rollout/emulated"][1]) == 1.0
    assert "rollout/emulated" in pair.quantities
    flipped, rows = found["route/flip_rate"]
    assert 0.0 < float(flipped / rows) < 0.5


def test_the_probe_passes_its_weights_and_no_others(pair, shape, write_model, tmp_path):
    assert pair.settings.probe_limit == LOW_PRECISION_LIMIT
    pair.sync_weights()
    other = load_file(write_model(tmp_path, shape, seed=5) / "model.safetensors")
    pair.engine.sync(other.items(), 2)
    with pytest.raises(StaleWeightsError, match="probe_limit is 0"):
        pair.check()
    pair.sync_weights()


@pytest.mark.parametrize("pair", ["fp8_per_block"], indirect=True)
def test_a_server_samples_what_the_process_samples(pair, weights, tmp_path):
    folder, here = pair.trainer.settings.model, pair.engine
    settings = COMMON | {"quantization": "fp8_per_block"}
    here.sync(weights.items(), 0)
    moved = [(name, 1.1 * w) for name, w in weights.items()]
    with (tmp_path / "log").open("w+") as log:
        address, process = start(folder, free_port(), log, settings)
        try:
            there = ServedEngine(Vllm(servers=(address,), **settings), folder, [sums.END])
            assert there.emulated
            assert responses(there) == responses(here)
            for engine in (here, there):
                engine.sync(moved, 1)
            assert responses(there) == responses(here)
            there.close()
        finally:
            kill(process)
