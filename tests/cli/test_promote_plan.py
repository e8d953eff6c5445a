"""Plans without engines: what is counted, divided, timed, and refused before a dry run."""

import json
from dataclasses import replace

import pytest
from promotions import GRID, engines, planned, promotion_of, recipe_of

from firstorder.backends.promote import hardware, memory, plan, timing
from firstorder.backends.promote.dry import layers_folded
from firstorder.backends.vllm import arguments as vllm_arguments
from firstorder.backends.vllm.serve import flags
from firstorder.core.errors import ConfigError
from firstorder.core.settings.toml import shipped

LENGTH = 32_768  # tokens of the longest response with its prompt, as in the paper
SUMS = ("task.kind=sums",)


def test_the_grid_of_the_paper_ships():
    assert [name for name in shipped() if name.startswith("qwen3-30b-a3b")] == sorted(GRID)


@pytest.mark.parametrize("name", GRID)
def test_a_large_recipe_is_the_small_one_on_another_model(name):
    large, small = recipe_of(name), recipe_of(name.replace("qwen3-30b-a3b", "minirl"))
    method = {"about", "optimizer", "schedule"}
    assert large.model_dump(exclude=method) == small.model_dump(exclude=method)
    n = large.schedule.minibatches
    assert large.schedule.prompts * large.schedule.group_size == 1024 * n
    assert str(n) == name[-1]


def test_parameters_are_those_of_the_model(shape):
    # 48 layers of 4 projections (5120 + 4096 rows), 128 experts of three 768 x 2048 matrices, a router and four norms
    layer = (5120 + 4096) * 2048 + 128 * 3 * 768 * 2048 + 128 * 2048 + 2 * 2048 + 2 * 128
    assert memory.parameters(shape) == 2 * 151936 * 2048 + 48 * layer + 2048 == 30_532_122_624
    assert memory.active(shape) == pytest.approx(3.04e9, rel=0.01)  # 3.3 B with the embedding, as its name says


def test_bytes_of_a_token(shape):
    assert memory.kv_bytes(shape, "auto") == 2 * 48 * 4 * 128 * 2
    assert memory.kv_bytes(shape, "fp8") == 2 * 48 * 4 * 128
    assert memory.route_bytes(shape, 1) == 384
    assert memory.wire_bytes(shape) == 512  # base64
    assert memory.host_bytes(shape) == 3 * 768 + 48 * 8
    assert memory.host_bytes(shape, gates=True) == 3 * 768 + 48 * 8 + 4 * 384


def test_quantised_weights_keep_what_decides_the_route(shape):
    whole = memory.serving_weights(shape, "none")
    assert whole == 2 * memory.parameters(shape)
    low = 48 * (memory.attention(shape) + memory.experts(shape))
    assert memory.serving_weights(shape, "fp8_per_tensor") == whole - low
    assert memory.serving_weights(shape, "fp8_per_block") == whole - low + 4 * low // 128**2


def test_a_server_quantises_all_but_the_routers(monkeypatch):
    monkeypatch.setattr(vllm_arguments, "ON_CPU", False)
    _, vllm, _ = engines()
    words = flags("model", "host", 1, vllm.model_copy(update={"tensor": 2}))
    given = dict(zip(words[::2], words[1::2], strict=False))
    assert given["--quantization"] == "fp8_per_block"
    assert json.loads(given["--quantization-config"]) == {"ignore": ["*mlp.gate"]}
    assert given["--tensor-parallel-size"] == "2"
    assert "--no-enforce-eager" in words
    plain = flags("model", "host", 1, vllm.model_copy(update={"quantization": "none"}))
    assert not any("quantization" in word for word in plain)


def test_a_plan_fills_nodes_and_gpus(shape):
    where = planned(shape)
    assert (where.nodes, where.ranks_per_node, where.rollout_nodes, where.engines) == (8, 8, 8, 64)
    weights = memory.serving_weights(shape, "fp8_per_block")
    assert weights + where.kv_cache + plan.SERVING == where.gpu.usable
    assert where.sequences == where.kv_cache // (memory.kv_bytes(shape, "auto") * LENGTH)
    assert planned(shape, sets=["vllm.tensor=2"]).engines == 32


def test_a_step_is_made_of_its_parts(shape):
    titan, vllm, _ = engines()
    moved = {n: plan.step(shape, recipe_of(n), titan, vllm, planned(shape)) for n in GRID}
    one, eight = moved["qwen3-30b-a3b-r3-n1"], moved["qwen3-30b-a3b-r3-n8"]
    assert eight.tokens == 8 * one.tokens == 8 * 1024 * LENGTH
    assert eight.routes == eight.tokens * 512
    assert one.weights == 4 * 30_532_122_624
    assert eight.update == pytest.approx(8 * one.update)
    assert one.score == 2 * moved["qwen3-30b-a3b-r2-n1"].score  # live, then with the rollout's routes
    assert one.seconds == one.rollout + one.score + one.update + one.exchange + one.sync + one.probe + one.save
    assert one.rollout == one.response * -(-1024 // (64 * 12))
    assert (
        0.3 * one.response < one.probe < one.response
    )  # a response that has the engine for itself still reads all weights
    assert one.checkpoint == 3 * one.weights
    assert one.save == one.checkpoint / (8 * plan.SHARED)
    flops = 1024 * LENGTH * plan.forward_flops(shape, LENGTH)
    assert one.update == pytest.approx(4 * flops / (64 * 989e12 * plan.TRAINING))


def test_without_other_ranks_nothing_is_exchanged(shape):
    titan, _, _ = engines(["torchtitan.expert=1"])
    where = planned(shape, world=1, sets=["torchtitan.expert=1"])
    assert plan.exchanges(shape, titan, where, 1 << 20, passes=1, recomputed=0) == (0, 0)


WRONG = {
    "half a node": ({"world": 60}, "--world 60 does not fill nodes of 8 GPUs; give a multiple of 8"),
    "experts on more ranks": ({"world": 4}, "torchtitan.expert = 8 must divide the number of ranks, got 4"),
    "experts that do not divide": ({"sets": ["torchtitan.expert=3"], "world": 24}, "must divide num_experts = 128"),
    "shards": ({"sets": ["torchtitan.shard=8"]}, "must be the number of ranks, got 64 ranks; set shard = -1"),
    "tensor": ({"sets": ["vllm.tensor=3"]}, "vllm.tensor = 3 does not divide 8"),
    "positions": ({"sets": ["torchtitan.pack_length=50000"]}, "more than the 40960 positions of the model"),
    "rows": ({"sets": ["vllm.max_tokens=32768"]}, f"do not fit into torchtitan.pack_length = {LENGTH}"),
    "tensor parallel": (
        {"sets": ["torchtitan.tensor=2"]},
        "its communication cannot be estimated yet; set torchtitan.tensor = 1",
    ),
    "a task": ({"sets": ["task.kind=maths"]}, "task.kind"),
    "no fp8": ({"gpu": "a100-80gb"}, "vllm.quantization = fp8_per_block needs a GPU that multiplies in FP8"),
    "the recipe": ({"sets": ["clip.high=0.3"]}, "would change the recipe, which is promoted as it is"),
    "an unknown key": ({"sets": ["vllm.tensr=2"]}, "did you mean 'tensor'?"),
    "a critic": ({"name": "ppo-critic"}, "needs a critic"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_divide_or_fit_is_named_with_its_remedy(name, shape):
    given, remedy = WRONG[name]
    with pytest.raises(ConfigError) as caught:
        planned(shape, **given)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_response_must_fit_into_the_kv_cache(shape):
    titan, vllm, _ = engines()
    used = memory.serving_weights(shape, vllm.quantization) + plan.SERVING
    small = replace(
        hardware.gpu("h100"), memory=int((used + 10_000 * memory.kv_bytes(shape, "auto")) / hardware.USABLE)
    )
    with pytest.raises(ConfigError, match=r"needs 3\.0; lower them to (9999|10000) together, or raise vllm.tensor"):
        plan.plan(shape, recipe_of("minirl"), titan, vllm, 64, small)


def test_an_update_too_long_for_memory_says_what_fits():
    titan, _, _ = engines()
    card = hardware.gpu("h100")
    plan.check_memory(card.usable, 1.0, titan, card)
    per = card.usable / 10_000  # everything is proportional to the positions, and 10,000 of them fit
    with pytest.raises(ConfigError, match="the largest that fits is 9984: lower it"):
        plan.check_memory(int(LENGTH * per), per, titan, card)
    with pytest.raises(ConfigError, match="however short the rows; raise --world"):
        plan.check_memory(2 * card.usable, 1.0, titan, card)


def test_layers_that_are_alike_are_shown_once():
    one = {"whole": [4], "local": [2], "mesh": ["fsdp"], "placements": ["S(0)"]}
    many = [one | {"name": f"layers.{i}.w"} for i in range(3)] + [one | {"name": "layers.3.w", "local": [4]}]
    assert [(each["name"], each["layers"]) for each in layers_folded(many)] == [("layers.*.w", 3), ("layers.3.w", 1)]


def test_time_outs_and_checkpoints_follow_from_the_estimates(shape):
    for name in GRID:
        promotion = promotion_of(shape, name)
        titan, vllm, where, moved, run = (getattr(promotion, x) for x in ("titan", "vllm", "plan", "step", "timing"))
        assert titan.timeout >= timing.SLACK * moved.rollout + vllm.timeout
        assert vllm.timeout >= timing.SLACK * moved.response
        assert titan.checkpoint_every == timing.cadence(moved.seconds)
        assert run.lost <= timing.LOST or titan.checkpoint_every == 1
        assert run.notice >= timing.NOTICE * moved.seconds
        assert where.nodes == where.rollout_nodes == 8
        assert run.total == 500 * moved.seconds + run.evaluating + timing.START
        assert run.gpu_hours == pytest.approx(128 * run.total / 3600)
    short = promotion_of(shape, sets=[*SUMS, "vllm.max_tokens=1024", "torchtitan.pack_length=2048"])
    titan, moved, run = short.titan, short.step, short.timing
    assert titan.checkpoint_every > 1
    assert run.lost <= timing.LOST < run.lost + moved.seconds


def test_evaluations_are_paid_for(shape):
    promotion = promotion_of(shape)
    assert (
        promotion.timing.evaluating == 50 * promotion.step.response
    )  # every tenth of 500 steps, 256 prompts in one wave of 64 engines x 12
    assert promotion_of(shape, sets=[*SUMS, "torchtitan.evaluate_every=0"]).timing.evaluating == 0


def test_an_assigned_time_out_is_kept_or_refused(shape):
    sets = [*SUMS, "torchtitan.timeout=5000", "vllm.timeout=1000", "torchtitan.checkpoint_every=3"]
    titan, vllm = promotion_of(shape, sets=sets).titan, promotion_of(shape, sets=sets).vllm
    assert (titan.timeout, vllm.timeout, titan.checkpoint_every) == (5000, 1000, 3)
    with pytest.raises(ConfigError, match=r"torchtitan\.timeout = 1800 s is below the 2871 s that a rollout may take"):
        promotion_of(shape, sets=[*SUMS, "torchtitan.timeout=1800"])
    with pytest.raises(ConfigError, match=r"vllm\.timeout = 60 s is below the 957 s that a response may take"):
        promotion_of(shape, sets=[*SUMS, "vllm.timeout=60"])


def test_a_job_is_long_enough_for_a_step(shape):
    promotion = promotion_of(shape, time=86_400)
    moved, run = promotion.step, promotion.timing
    useful = 86_400 - timing.START - run.notice
    assert run.jobs == -(-(500 * moved.seconds + run.evaluating) // useful)
    assert run.restarts == run.jobs - 1 + timing.SPARE
    with pytest.raises(ConfigError, match=r"--time 3600 s ends before a step does.*give at least"):
        promotion_of(shape, time=3600)


@pytest.mark.parametrize("text", ["", "0", "1:2:3:4", "a day", "1-", "-1", "24h", "00:00:00"])
def test_a_time_that_is_none_is_named(text):
    with pytest.raises(ConfigError, match=r"--time must (look like 24|be above 0)"):
        timing.seconds(text)


def test_times_are_those_of_slurm():
    assert [timing.seconds(t) for t in ("90", "90:30", "1:00:00", "1-0", "1-12:30", "1-12:30:15")] == [
        *(5400, 5430, 3600, 86400, 131400, 131415)
    ]
    assert all(timing.seconds(timing.clock(s)) == s for s in (60, 3599, 86399, 86400, 1_000_000))
