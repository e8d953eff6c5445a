"""Sampling and scoring of sequences against the tree, which holds every response."""

import pytest
import torch

from firstorder.core.routing import Replay
from firstorder.sim.config import Sim
from firstorder.sim.exact import scene
from firstorder.sim.exact.edges import Given
from firstorder.sim.exact.forward import along, run
from firstorder.sim.exact.tree import episodes
from firstorder.sim.exact.world import gather
from firstorder.sim.model import noise, policy
from firstorder.sim.sampling.sequences import sample, score
from firstorder.sim.tasks import WORD_TASKS
from firstorder.sim.tasks.task import converse, picks

SIM = Sim(vocab=3, horizon=3, prompts=2, width=4, expert_width=4, experts=4)
SEEDS = torch.tensor([3, 4])
SETTINGS = {name: {"task": name, "vocab": 4} for name in WORD_TASKS} | {
    "sum_of_three": {},
    "guess_in_long_turns": {"task": "guess", "vocab": 4, "turn_length": 2, "horizon": 4, "prompts": 1},
}


@pytest.fixture(scope="module", params=SETTINGS)
def world(request):
    sim = Sim(**(SIM.model_dump() | SETTINGS[request.param]))
    tree = scene.grow(sim)
    return sim, tree, scene.engines(sim, SEEDS), policy.initial_weights(sim, SEEDS)


def every_response(tree):
    """All responses of the tree as sequences `[2, B, L]`."""
    tokens = episodes(tree, tree.every).tokens
    return tokens.expand(2, *tokens.shape)


def test_scores_are_those_of_the_tree(world):
    sim, tree, pair, weights = world
    for arithmetic in (pair.pi, pair.mu):
        model = policy.load(weights, arithmetic, sim)
        on_tree = gather(run(model, tree).logp, tree.every)
        found = score(model, every_response(tree)).logp[..., tree.task.layout.places]
        torch.testing.assert_close(torch.where(tree.mask, found, 0.0), on_tree, rtol=1e-12, atol=1e-14)


def test_replayed_scores_and_their_gradients_are_those_of_the_tree(world):
    sim, tree, pair, weights = world
    rollout = policy.load(weights, pair.mu, sim)
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    model = policy.load(leaves, pair.pi, sim)
    on_tree = gather(run(model, tree, Given(routes=run(rollout, tree).routes)).logp, tree.every).sum(-1)
    tokens = every_response(tree)
    with torch.no_grad():
        replay = Replay(ids=score(rollout, tokens).routes)
    logp = score(model, tokens, replay).logp[..., tree.task.layout.places]
    found = torch.where(tree.mask, logp, 0.0).sum(-1)
    torch.testing.assert_close(found, on_tree, rtol=1e-12, atol=1e-14)
    weight = torch.linspace(-1, 1, tree.mask.shape[0], dtype=torch.float64)
    pairs = [torch.autograd.grad((weight * x).sum(), list(leaves.values())) for x in (found, on_tree)]
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_the_routes_of_the_tree_along_a_response_are_those_of_its_scores(world):
    sim, tree, pair, weights = world
    model = policy.load(weights, pair.mu, sim)
    found, laid = score(model, every_response(tree)).routes, episodes(tree, tree.every)
    ran = torch.arange(laid.tokens.shape[1]) < (laid.lengths - 1)[:, None]
    expected = torch.where(ran[..., None, None], found, -1)
    assert torch.equal(along(run(model, tree).routes, tree, tree.every), expected)


def test_every_sampled_response_has_the_log_prob_that_the_tree_gives_it(world):
    sim, tree, pair, weights = world
    model = policy.load(weights, pair.mu, sim)
    rows = torch.arange(200).expand(2, -1) % sim.prompts
    with torch.no_grad():
        done = sample(model, tree.task, rows, noise.combine(noise.mix(SEEDS)[:, None], torch.arange(200)))
        on_tree = gather(run(model, tree).logp, tree.every)
    places = tree.task.layout.places
    response, mask = done.tokens[..., places], done.mask[..., places]
    laid = converse(tree.task, rows, response, mask)
    assert torch.equal(done.tokens, laid.tokens)
    assert torch.equal(done.mask, laid.mask)
    assert torch.equal(done.lengths, laid.lengths)
    same = (response[:, :, None] == tree.every.tokens).all(-1) & (mask[:, :, None] == tree.mask).all(-1)
    same &= rows[..., None] == tree.prompt
    assert (same.sum(-1) == 1).all()
    expected = on_tree.gather(1, same.long().argmax(-1)[..., None].expand(-1, -1, sim.horizon))
    torch.testing.assert_close(done.logp[..., places], expected, rtol=1e-12, atol=1e-14)
    assert len(torch.unique(done.lengths)) > 1


def test_samples_follow_the_distribution_of_the_tree(world):
    sim, tree, pair, weights = world
    model = policy.load(weights, pair.mu, sim)
    count = 20_000
    keys = noise.combine(noise.mix(SEEDS)[:, None], torch.arange(count))
    with torch.no_grad():
        done = sample(model, tree.task, torch.zeros(2, count, dtype=torch.int64), keys)
        chance = gather(run(model, tree).logp, tree.every).sum(-1).exp()
    mine, places = tree.prompt == 0, tree.task.layout.places
    digits = 9 ** torch.arange(sim.horizon)
    code = (digits * (tree.every.tokens[mine] + 4 * tree.mask[mine])).sum(-1)
    drawn = (digits * (done.tokens[..., places] + 4 * done.mask[..., places])).sum(-1)
    share = torch.stack([(drawn == one).double().mean(1) for one in code], dim=1)
    expected = chance[:, mine]
    assert ((share - expected).abs() <= 5 * (expected * (1 - expected) / count).sqrt() + 1e-12).all()


def test_a_sampled_batch_keeps_the_contract(world):
    sim, tree, pair, weights = world
    with torch.no_grad():
        model = policy.load(weights, pair.mu, sim)
        done = sample(model, tree.task, torch.zeros(2, 6, dtype=torch.int64), torch.arange(12).view(2, 6))
    ran = torch.arange(done.tokens.shape[-1]) < (done.lengths - 1)[..., None]
    assert torch.equal((done.routes >= 0).all(-1).all(-1), ran)  # an answer's tokens are run and routed
    assert torch.equal((done.routes == -1).any(-1).any(-1), ~ran)
    assert (done.logp[~done.mask] == 0).all()
    assert (done.logp[done.mask] < 0).all()
    assert not done.mask[..., : sim.prompt_length].any()
    assert done.mask.gather(-1, done.lengths[..., None] - 1).all()


def test_a_pool_is_gone_through_in_shuffled_epochs():
    picked = torch.cat([picks(9, SEEDS, step, 6) for step in range(3)], dim=1)
    for member in picked:
        assert sorted(member[:9].tolist()) == sorted(member[9:].tolist()) == list(range(9))
        assert member[:9].tolist() != member[9:].tolist()
    assert picked[0].tolist() != picked[1].tolist()
