"""What replay, the surrogate, routes and weight sync cost on the real engines."""

import base64
import io

import numpy as np
import pytest
import torch
from stock import labelled, stock_trainer

from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.torchtitan.packing import pack
from firstorder.backends.torchtitan.trainer import Trainer
from firstorder.backends.vllm.arguments import prepare
from firstorder.backends.vllm.config import Vllm
from firstorder.core.method.recipe import Recipe
from firstorder.core.routing import Replay
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm, RecipeWeights, with_advantages
from firstorder.core.training.backend import Scored
from firstorder.core.training.batch import RolloutBatch

ROWS, LENGTH, PROMPT = 8, 256, 32


@pytest.fixture(scope="module")
def settings(folder):
    return Torchtitan(model=str(folder), dtype="float32", pack_length=LENGTH, microbatch_rows=ROWS)


@pytest.fixture(scope="module")
def trainers(settings, tmp_path_factory):
    """A trainer of each recipe, all with the same weights."""
    recipes = {name: toml.build(Recipe, toml.read(name)) for name in ("minirl", "minirl-r3", "gspo")}
    return {name: Trainer(settings, r, 1.0, tmp_path_factory.mktemp("run")) for name, r in recipes.items()}


@pytest.fixture(scope="module")
def scored(trainers, shape):
    """Full rows, so that both trainers run the same tokens; another engine's routes, a tenth of them other ones."""
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, shape.vocab_size, (ROWS, LENGTH), generator=g)
    mask = (torch.arange(LENGTH) >= PROMPT).expand(ROWS, LENGTH)
    lengths, nothing = torch.full((ROWS,), LENGTH), torch.zeros(ROWS, LENGTH, dtype=torch.float64)
    batch = RolloutBatch(
        tokens=tokens,
        mask=mask,
        lengths=lengths,
        logp_mu=nothing,
        rewards=torch.rand(ROWS, generator=g, dtype=torch.float64),
        groups=torch.arange(ROWS) // 4,
    )
    live = trainers["minirl"].score(batch)
    logp = live.logp.where(mask, 0.0)
    batch = RolloutBatch(**(vars(batch) | {"logp_mu": logp}))
    flipped = (torch.rand(live.routes.shape[:-1], generator=g) < 0.1)[..., None] & (live.routes >= 0)
    routes = torch.where(flipped, (live.routes + 1) % shape.num_experts, live.routes)
    return Scored(batch=batch, logp_old=logp, replay=Replay(ids=routes))


def step(trainer, scored, replay):
    """One optimiser step of a trainer, as a call."""
    arms = (Arm(recipe=trainer.recipe),)
    held = Scored(batch=scored.batch, logp_old=scored.logp_old, replay=scored.replay if replay else None)
    ready = with_advantages(held, arms, 4)
    return lambda: trainer.update(ready, RecipeWeights(arms))


def test_step_with_replay_and_without(trainers, scored, in_turns):
    in_turns(step_live=step(trainers["minirl"], scored, False), step_with_R3=step(trainers["minirl"], scored, True))


def test_step_beside_that_of_torchtitan(trainers, scored, settings, shape, in_turns):
    stock = stock_trainer(shape, settings, trainers["minirl"].recipe)
    tokens = labelled(pack(scored.batch.tokens, scored.batch.lengths, LENGTH))
    in_turns(
        step_of_torchtitan=lambda: stock.train_step(tokens),
        step_at_token_scope=step(trainers["minirl"], scored, False),
        step_at_sequence_scope=step(trainers["gspo"], scored, False),
    )


def test_rollouts_with_routes_and_log_probs_beside_bare_ones(trainers, folder, shape, in_turns):
    vllm = Vllm(dtype="float32", max_prompt=PROMPT, max_tokens=64)
    prepare(vllm)
    from vllm import LLM, SamplingParams

    from firstorder.backends.vllm.engine import InProcessEngine

    engine = InProcessEngine(vllm, str(folder), [shape.vocab_size - 1], 0)
    bare = LLM(
        model=str(folder),
        dtype="float32",
        max_model_len=vllm.max_prompt + vllm.max_tokens,
        max_num_seqs=vllm.max_sequences,
        kv_cache_memory_bytes=vllm.kv_cache_mib << 20,
        enable_prefix_caching=vllm.prefix_caching,
        enforce_eager=True,
        skip_tokenizer_init=True,
        disable_log_stats=True,
    )
    g = torch.Generator().manual_seed(1)
    prompts = torch.randint(2, shape.vocab_size, (64, PROMPT), generator=g).tolist()
    wanted = [
        SamplingParams(max_tokens=64, seed=i, stop_token_ids=[shape.vocab_size - 1], detokenize=False)
        for i in range(len(prompts))
    ]
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    in_turns(
        bare_generate=lambda: bare.generate(asked, wanted, use_tqdm=False),
        rollouts_with_routes_and_log_probs=lambda: engine.generate(prompts, range(len(prompts))),
        weight_sync=lambda: engine.sync(trainers["minirl"].weights(), 1),
    )


def test_routes_in_memory_and_on_the_wire(facts):
    tokens, layers, top_k, experts = 32_768, 48, 8, 128
    routes = torch.randint(experts, (tokens, layers, top_k), dtype=torch.int16)
    held = io.BytesIO()
    np.save(held, routes.to(torch.uint8).numpy())
    wire = len(base64.b64encode(held.getvalue()))
    facts["routes of 32,768 tokens, 48 layers, 8 experts"] = (
        f"{routes.nbytes / 2**20:.1f} MiB in memory, {wire / 2**20:.1f} MiB on the wire"
    )
    assert wire < routes.nbytes
