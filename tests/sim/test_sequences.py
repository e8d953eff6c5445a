"""Sampling and scoring of sequences against the tree, which holds every response."""

import torch

from firstorder.sim import noise, policy, scene
from firstorder.sim.config import Sim
from firstorder.sim.engine import run
from firstorder.sim.sequences import sample, score
from firstorder.sim.task import picks
from firstorder.sim.tree import gather

SIM = Sim(vocab=3, horizon=3, prompts=2, width=4, expert_width=4, experts=4)
SEEDS = torch.tensor([3, 4])


def world():
    tree, _ = scene.grow(SIM)
    pair = scene.engines(SIM, SEEDS)
    weights = policy.initial_weights(SIM, SEEDS)
    return tree, pair, weights


def every_response(tree):
    """All responses of the tree as sequences `[2, B, L]`."""
    tokens = torch.cat([tree.prompts[tree.prompt], tree.tokens], dim=1)
    return tokens.expand(2, *tokens.shape)


def test_scores_are_those_of_the_tree():
    tree, pair, weights = world()
    for arithmetic in (pair.pi, pair.mu):
        model = policy.load(weights, arithmetic, SIM)
        on_tree = gather(run(model, tree).logp, tree)
        found = score(model, every_response(tree)).logp[..., SIM.prompt_length :]
        torch.testing.assert_close(torch.where(tree.mask, found, 0.0), on_tree, rtol=1e-12, atol=1e-14)


def test_replayed_scores_and_their_gradients_are_those_of_the_tree():
    tree, pair, weights = world()
    rollout = policy.load(weights, pair.mu, SIM)
    leaves = {name: w.requires_grad_() for name, w in weights.items()}
    model = policy.load(leaves, pair.pi, SIM)
    on_tree = gather(run(model, tree, run(rollout, tree).routes).logp, tree).sum(-1)
    tokens = every_response(tree)
    with torch.no_grad():
        replay = score(rollout, tokens).routes
    found = torch.where(tree.mask, score(model, tokens, replay).logp[..., SIM.prompt_length :], 0.0).sum(-1)
    torch.testing.assert_close(found, on_tree, rtol=1e-12, atol=1e-14)
    weight = torch.linspace(-1, 1, tree.mask.shape[0], dtype=torch.float64)
    pairs = [torch.autograd.grad((weight * x).sum(), list(leaves.values())) for x in (found, on_tree)]
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_samples_follow_the_distribution_of_the_tree():
    tree, pair, weights = world()
    model = policy.load(weights, pair.mu, SIM)
    count = 20_000
    keys = noise.combine(noise.mix(SEEDS)[:, None], torch.arange(count))
    with torch.no_grad():
        done = sample(model, tree.task, torch.zeros(2, count, dtype=torch.int64), keys)
        chance = gather(run(model, tree).logp, tree).sum(-1).exp()
    mine = tree.prompt == 0
    code = (torch.tensor([1, 3, 9]) * (tree.tokens[mine] + 27 * tree.mask[mine])).sum(-1)
    drawn = (
        torch.tensor([1, 3, 9]) * (done.tokens[..., SIM.prompt_length :] + 27 * done.mask[..., SIM.prompt_length :])
    ).sum(-1)
    share = (drawn[..., None] == code).double().mean(1)
    expected = chance[:, mine]
    assert ((share - expected).abs() <= 5 * (expected * (1 - expected) / count).sqrt() + 1e-12).all()
    logp = done.logp.sum(-1)
    torch.testing.assert_close(logp, expected.log().gather(1, (drawn[..., None] == code).long().argmax(-1)))


def test_a_sampled_batch_keeps_the_contract():
    tree, pair, weights = world()
    with torch.no_grad():
        model = policy.load(weights, pair.mu, SIM)
        done = sample(model, tree.task, torch.arange(2).expand(2, -1), torch.arange(4).view(2, 2))
    last = (done.lengths - 1)[..., None, None, None]
    assert (done.routes.gather(2, last.expand(-1, -1, 1, 2, 2)) == -1).all()
    assert (done.logp[~done.mask] == 0).all()
    assert not done.mask[..., : SIM.prompt_length].any()


def test_a_pool_is_gone_through_in_shuffled_epochs():
    picked = torch.cat([picks(9, SEEDS, step, 6) for step in range(3)], dim=1)
    for member in picked:
        assert sorted(member[:9].tolist()) == sorted(member[9:].tolist()) == list(range(9))
        assert member[:9].tolist() != member[9:].tolist()
    assert picked[0].tolist() != picked[1].tolist()
