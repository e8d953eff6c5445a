"""vLLM against torchtitan at the same weights: log-probs, routes, seeds, and weights that arrive."""

import pytest
import torch

from firstorder.backends.pair import DistributionError, StaleWeightsError
from firstorder.backends.session import open_pair
from firstorder.backends.tasks import sums
from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.tasks.registry import open_tasks
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.vllm.config import Vllm
from firstorder.core.method.recipe import Recipe
from firstorder.core.routing import check_routes
from firstorder.core.settings import toml

SCHEDULE = ["schedule.steps=2", "schedule.prompts=4", "schedule.group_size=4", "optimizer.lr=0.01"]


def opened(folder):
    return open_tasks(TaskSettings(kind="sums"), folder, 40)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, shape, write_model):
    folder = write_model(tmp_path_factory.mktemp("model"), shape)
    recipe = toml.build(Recipe, toml.override(toml.read("minirl-r3-n2"), SCHEDULE))
    titan = Torchtitan(model=str(folder), dtype="float32", pack_length=64)
    vllm = Vllm(dtype="float32", temperature=0.7, max_prompt=40, kv_cache_mib=16)
    return open_pair(recipe, titan, vllm, opened(folder), tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def batch(pair):
    return pair.rollout(0)


def apart(pair, batch):
    return float((pair.trainer.score(batch).logp - batch.logp_mu)[batch.mask].abs().max())


def move(pair, amount):
    """Change every weight of the trainer."""
    state = pair.trainer.model.state_dict()
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for w in state.values():
            local = w.to_local() if hasattr(w, "to_local") else w
            local.mul_(1.0 + amount * torch.randn(local.shape, generator=g))
    pair.trainer.model.load_state_dict(state)


def test_the_log_probs_are_of_the_distribution_that_was_sampled(pair, batch):
    assert pair.trainer.temperature == 0.7
    assert apart(pair, batch) < 1e-4
    assert len(batch.tokens) == 16


def test_the_engines_visit_the_same_experts(pair, batch):
    live = pair.trainer.score(batch).routes
    assert torch.equal(live.sort(-1).values, batch.routes.sort(-1).values)
    check_routes(batch.routes, 8)


def test_a_seed_gives_the_same_response_alone_and_in_a_batch(pair):
    prompts = [sums.encode(sums.prompt(i)) for i in range(6)]
    together, alone = pair.engine.generate(prompts, range(6)), pair.engine.generate(prompts[3:4], [3])
    again = pair.engine.generate(prompts, range(6))
    assert [r.tokens for r in together] == [r.tokens for r in again]
    assert (together[3].tokens, together[3].logp) == (alone[0].tokens, alone[0].logp)
    assert torch.equal(together[3].routes, alone[0].routes)
    assert len({tuple(r.tokens) for r in pair.engine.generate(prompts[:1] * 8, range(8))}) > 1


def test_a_response_is_cut_or_ended(pair, batch):
    for tokens, mask, length in zip(batch.tokens, batch.mask, batch.lengths, strict=True):
        response = tokens[mask].tolist()
        assert int(mask.sum()) <= 24
        assert response[-1] == sums.END or len(response) == 24
        assert sums.END not in response[:-1]
        assert int(mask.nonzero()[-1]) == int(length) - 1


def test_a_step_of_the_loop_moves_both_engines(pair):
    batch = pair.rollout(1)
    scored, agreement = pair.score(batch)
    assert torch.equal(scored.replay.ids, batch.routes)
    assert float(agreement["route/flip_rate"][0]) == 0.0
    move(pair, 0.05)
    assert apart(pair, batch) > 1e-2
    pair.sync_weights()
    assert apart(pair, pair.rollout(1)) < 1e-4


def test_weights_arrive_again_and_again(pair):
    for _ in range(3):
        move(pair, 0.05)
        pair.sync_weights()
    assert apart(pair, pair.rollout(2)) < 1e-4


def test_stale_weights_stop_the_run(pair, monkeypatch):
    move(pair, 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(pair.engine, "sync", lambda weights, version: None)
        with pytest.raises(StaleWeightsError, match="vLLM holds other weights; restart it with --resume"):
            pair.sync_weights()
    pair.sync_weights()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"top_p": 0.7}, "each is higher, as where the tokens sampled from"),
        ({"top_k": 3}, "each is higher, as where the tokens sampled from"),
        ({"temperature": 0.5}, "they are those at a temperature of 0.5"),
    ],
)
def test_another_distribution_is_told_from_other_weights(changes, why, pair, monkeypatch):
    from firstorder.backends.vllm import engine

    plain = engine.sampling
    pair.sync_weights()
    monkeypatch.setattr(engine, "sampling", lambda *given: plain(*given) | changes)
    with pytest.raises(DistributionError, match=f"vLLM samples from another distribution than at .*: {why}"):
        pair.check()


def test_before_any_sync_no_sync_is_blamed(pair, monkeypatch):
    monkeypatch.setattr(pair, "_synced", False)
    move(pair, 0.05)
    with pytest.raises(StaleWeightsError, match=r"^at the start, before any weight sync, .* computes another model"):
        pair.check()
    pair.sync_weights()


def test_weights_in_the_wrong_layout_stop_the_run(pair, monkeypatch):
    from firstorder.backends.vllm import transfer

    move(pair, 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "forget_packed_experts", lambda model: None)
        with pytest.raises(StaleWeightsError):
            pair.sync_weights()


def test_the_prefix_cache_of_the_old_weights_is_dropped(pair, monkeypatch, tmp_path_factory, shape, write_model):
    """Last, because the engine of the test before holds scrambled weights."""
    folder = write_model(tmp_path_factory.mktemp("again"), shape)
    recipe = toml.build(Recipe, toml.override(toml.read("minirl"), SCHEDULE))
    titan = Torchtitan(model=str(folder), dtype="float32", pack_length=64)
    vllm = Vllm(dtype="float32", kv_cache_mib=16, max_prompt=220)
    fresh = open_pair(recipe, titan, vllm, opened(folder), folder / "checkpoints")
    longer = [sums.encode("17+25=7+5=12,1+2+1=4>42," * 8)]  # prefixes are cached in blocks of 128 tokens
    fresh.engine.generate(longer, [0])
    move(fresh, 0.2)
    fresh.sync_weights()
    after = fresh.engine.generate(longer, [0])[0]
    again = fresh.engine.generate(longer, [0])[0]
    assert (after.tokens, after.logp) == (again.tokens, again.logp)
    with monkeypatch.context() as patch:
        patch.setattr(fresh.engine._llm, "reset_prefix_cache", lambda: None)
        move(fresh, 0.2)
        fresh.engine.sync(fresh.trainer.weights(), 9)
    stale = fresh.engine.generate(longer, [0])[0]
    fresh.engine.sync(fresh.trainer.weights(), 10)
    assert stale.logp != fresh.engine.generate(longer, [0])[0].logp
