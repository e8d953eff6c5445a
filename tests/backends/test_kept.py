"""Top-p, top-k and min-p of vLLM, whose kept tokens the trainer scores over."""

from dataclasses import replace

import pytest
import torch

from firstorder.backends.conversation import joined
from firstorder.backends.pair import DistributionError
from firstorder.backends.rollouts import Response, collate
from firstorder.backends.session import open_pair
from firstorder.backends.tasks.config import TaskSettings
from firstorder.backends.tasks.registry import open_tasks
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.vllm import kept as reading
from firstorder.backends.vllm.arguments import sampling
from firstorder.backends.vllm.config import Vllm
from firstorder.core.errors import DataError
from firstorder.core.method.recipe import Recipe
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm, with_advantages
from firstorder.core.training.loop import train

SCHEDULE = ["schedule.steps=4", "schedule.prompts=4", "schedule.group_size=4", "optimizer.lr=0.01"]
LIMIT = 1e-5  # nats a token, mean: what two float32 engines differ by, 1e-6 without truncation
CUTS = {"top_p": {"top_p": 0.9, "max_kept": 31}, "top_k": {"top_k": 8, "max_kept": 12}}


@pytest.fixture(scope="module", params=CUTS)
def pair(request, tmp_path_factory, shape, write_model):
    """Tiny float32 engines, the trainer's head in chunks, that answer sums by top-p or by top-k."""
    folder = write_model(tmp_path_factory.mktemp("model"), shape)
    recipe = toml.build(Recipe, toml.override(toml.read("minirl-r3-n2"), SCHEDULE))
    titan = Torchtitan(model=str(folder), dtype="float32", pack_length=64, loss_chunks=4)
    vllm = Vllm(dtype="float32", temperature=0.7, max_prompt=40, kv_cache_mib=16, **CUTS[request.param])
    tasks = open_tasks(TaskSettings(kind="sums"), folder, 40)
    return open_pair(recipe, titan, vllm, tasks, tmp_path_factory.mktemp("checkpoints"))


def apart(pair, batch):
    """Mean |Δ log p| of a batch."""
    return float((pair.trainer.score(batch).logp - batch.logp_mu)[batch.mask].abs().mean())


def test_engines_agree_over_the_kept_tokens_and_not_without_them(pair):
    batch = pair.rollout(0)
    counts = (batch.kept >= 0).sum(-1)[batch.mask]
    assert int(counts.min()) >= 1
    assert int(counts.max()) < 32
    if pair.engine.settings.top_k:
        assert counts.unique().tolist() == [8]
    over, without = apart(pair, batch), apart(pair, replace(batch, kept=None))
    assert over < LIMIT
    assert without > 1000 * over
    assert without > 0.01


def test_the_mass_of_a_nucleus_is_the_least_that_reaches_top_p(pair):
    scores = pair.trainer.score(batch := pair.rollout(0))
    mass = 1 - scores.outside[batch.mask]
    assert float(mass.min()) > 0
    if pair.engine.settings.top_p < 1:
        assert float(mass.min()) >= 0.9 - 1e-5
        least = scores.logp[batch.mask].exp() * mass  # of the tokens sampled, the last to come in is among them
        assert float((mass - least).min()) < 0.9
    assert float(scores.outside[~batch.mask].abs().max()) < 1e-5


def test_a_run_trains_over_the_mask_and_its_receipts_say_so(pair):
    logs = []
    train((Arm(recipe=pair.settings.recipe),), pair, first=1, on_step=logs.append)
    assert len(logs) == 3
    for log in logs:
        assert float(log.receipts["mask/tokens_truncated"]) == 1.0
        assert 1 <= float(log.receipts["mask/kept"]) <= 31
        assert 0 < float(log.receipts["mask/mass_outside"]) < 0.7
        assert abs(float(log.metrics["kl"])) < LIMIT
    assert apart(pair, pair.rollout(4)) < LIMIT  # after the last sync


def test_the_update_scores_over_the_mask_too(pair):
    scored, _ = pair.score(pair.rollout(1))
    scored, seen = with_advantages(scored, (Arm(recipe=pair.settings.recipe),), 4), []

    def nothing(stats):
        seen.append((stats.logp_theta.detach() - stats.logp_old)[stats.mask].abs().max())
        return torch.zeros_like(stats.logp_theta)

    pair.update(scored, nothing)
    assert len(seen) > 0
    assert float(max(seen)) < 1e-4
    pair.sync_weights()


def test_a_probe_without_the_mask_blames_the_distribution(pair, monkeypatch):
    generate = pair.engine.generate
    forgetful = lambda prompts, seeds: [replace(one, kept=None) for one in generate(prompts, seeds)]  # noqa: E731
    pair.check()
    monkeypatch.setattr(pair.engine, "generate", forgetful)
    with pytest.raises(DistributionError, match="without truncation: each is higher, as where the tokens sampled from"):
        pair.check()


def test_more_kept_tokens_than_are_returned_stop_the_run(pair, monkeypatch):
    monkeypatch.setattr(pair.engine, "settings", pair.engine.settings.model_copy(update={"max_kept": 2}))
    with pytest.raises(DataError, match=r"vLLM samples from more than vllm.max_kept = 2 tokens, and returns no more"):
        pair.rollout(0)


def test_what_is_asked_for_says_every_cut_and_one_log_prob_more_than_may_be_kept():
    asked = sampling(Vllm(top_p=0.9, top_k=5, min_p=0.1), [0], 1000)
    assert {name: asked[name] for name in ("top_p", "top_k", "min_p")} == {"top_p": 0.9, "top_k": 5, "min_p": 0.1}
    assert asked["logprobs"] == 11
    assert sampling(Vllm(top_p=0.9), [0], 1000)["logprobs"] == 257
    assert sampling(Vllm(top_p=0.9), [0], 100)["logprobs"] == 100
    plain = sampling(Vllm(), [0], 1000)
    assert (plain["logprobs"], plain["top_k"], plain["top_p"], plain["min_p"]) == (0, -1, 1.0, 0.0)


def test_kept_tokens_are_those_whose_log_prob_is_finite():
    settings = Vllm(top_p=0.9, max_kept=2)
    found = reading.kept([[(7, -0.1), (7, -0.1), (3, -2.0), (1, -torch.inf)], [(2, 0.0), (0, -9999.0)]], settings, 9)
    assert found == [[3, 7], [2]]
    assert reading.kept([[(0, -1.0), (1, -1.0), (2, -1.0)]], settings.model_copy(update={"max_kept": 3}), 3) == [[]]
    assert reading.kept([], Vllm(), 9) is None
    with pytest.raises(DataError, match=r"more than vllm.max_kept = 2"):
        reading.kept([[(0, -1.0), (1, -1.0), (2, -1.0)]], settings, 9)


def test_an_environment_s_answer_has_no_mask_between_those_of_two_turns():
    routes = torch.ones(6, 1, 1, dtype=torch.int16)
    first = Response(tokens=[5, 0], logp=[-1.0, -1.0], routes=routes[:3], ended=True, kept=[[5, 6], [0]])
    second = Response(tokens=[4], logp=[-1.0], routes=routes, ended=True, kept=[[4, 7]])
    assert joined(first, [8, 9], second).kept == [[5, 6], [0], [], [], [4, 7]]
    assert joined(replace(first, kept=None), [8], replace(second, kept=None)).kept is None


def test_a_mask_stands_at_the_tokens_of_its_response():
    routes = torch.ones(3, 1, 1, dtype=torch.int16)
    one = Response(tokens=[5, 0], logp=[-1.0, -1.0], routes=routes, ended=True, kept=[[5, 6], []])
    other = Response(tokens=[4], logp=[-1.0], routes=routes[:2], ended=True, kept=[[4]])
    batch = collate([[1, 2], [3, 3]], [one, other], [0.0, 1.0], [0, 1], 1, 1, 2)
    assert batch.kept.tolist() == [[[-1, -1], [-1, -1], [5, 6], [-1, -1]], [[-1, -1], [-1, -1], [4, -1], [-1, -1]]]
    with pytest.raises(DataError, match="a response of 2 tokens says of 1 which tokens were kept"):
        collate([[1, 2]], [replace(one, kept=[[5]])], [0.0], [0], 1, 1, 2)
    with pytest.raises(DataError, match="`kept` must hold the token that was sampled"):
        collate([[1, 2]], [replace(one, kept=[[6], []])], [0.0], [0], 1, 1, 2)
