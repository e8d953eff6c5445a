"""The same weights and the same batch: torchtitan gives what core gives on a plain transformers forward."""

import dataclasses

import pytest
import torch
from reference import Reference
from safetensors.torch import load_file

from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.torchtitan.trainer import Trainer, learning_rate, optimizer
from firstorder.backends.weights import open_weights
from firstorder.core.method.recipe import Optimizer, Recipe, Terms
from firstorder.core.method.terms import entropy_weights, total_loss
from firstorder.core.routing import Replay, replay_of
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm, RecipeWeights, with_advantages
from firstorder.core.training.backend import Scored
from firstorder.core.training.batch import RolloutBatch
from firstorder.core.training.replay import rules

TEMPERATURE, GROUP, SIZE, LENGTH = 0.8, 4, 8, 24
RECIPES = {name: toml.build(Recipe, toml.read(name)) for name in toml.shipped()}
TRAINABLE = [
    name
    for name, r in RECIPES.items()
    if r.about.unsupported is None and r.rejection.kind != "kl" and r.ratio.router_floor is None and not r.has_critic
]
NOT_TRAINABLE = {"trm", "trm-avg", "rspo", "pr2", "ppo-critic", "minirl-critic"}

# with ε far above any gradient, one AdamW step is the gradient itself
# beyond the ranges of a run: AdamW that takes plain steps
PLAIN = Optimizer(max_grad_norm=float("inf")).model_copy(update={"lr": 1e6, "eps": 1e6})


@pytest.fixture(scope="module")
def folders(tmp_path_factory, shape, write_model):
    """The weights of π_old, and those a few updates later."""
    old, new = tmp_path_factory.mktemp("old"), tmp_path_factory.mktemp("new")
    write_model(old, shape)
    write_model(new, shape, moved=0.02)
    return old, new


@pytest.fixture(scope="module")
def references(folders):
    return tuple(Reference(folder) for folder in folders)


@pytest.fixture(scope="module")
def batch(references, shape):
    """Responses of many lengths, one with environment tokens inside, sampled by an engine that is a little off."""
    g = torch.Generator().manual_seed(3)
    tokens = torch.randint(2, shape.vocab_size, (SIZE, LENGTH), generator=g)
    lengths = torch.tensor([24, 7, 15, 9, 22, 11, 18, 5])
    position = torch.arange(LENGTH)
    mask = (position >= 3) & (position < lengths[:, None])
    mask[0, 10:14] = False
    tokens = torch.where(position < lengths[:, None], tokens, 0)
    with torch.no_grad():
        logp, _, routes = references[0].score(tokens, TEMPERATURE)
    off = 0.05 * torch.randn(SIZE, LENGTH, generator=g, dtype=torch.float64)
    flipped = torch.rand(SIZE, LENGTH, routes.shape[2], generator=g) < 0.2
    routes = torch.where(flipped[..., None], (routes + 1) % shape.num_experts, routes)
    run = position < (lengths - 1)[:, None]
    return RolloutBatch(
        tokens=tokens,
        mask=mask,
        lengths=lengths,
        logp_mu=torch.where(mask, (logp + off).clamp(max=-1e-4), 0.0),
        rewards=torch.rand(SIZE, generator=g, dtype=torch.float64),
        groups=torch.arange(SIZE) // GROUP,
        routes=torch.where(run[..., None, None], routes, -1).to(torch.int16),
        gates=torch.rand(routes.shape, generator=g).softmax(-1),
    )


@pytest.fixture(scope="module")
def trainer(folders, tmp_path_factory):
    settings = Torchtitan(model=str(folders[0]), dtype="float32", pack_length=32, microbatch_rows=2)
    holds_a_reference = Recipe(terms=Terms(reference_kl=1.0))
    return Trainer(settings, holds_a_reference, TEMPERATURE, tmp_path_factory.mktemp("checkpoints"))


def test_the_recipes_that_cannot_be_trained_are_known():
    assert set(RECIPES) - set(TRAINABLE) == NOT_TRAINABLE


def test_scores_routes_and_entropy_are_those_of_transformers(trainer, references, folders, batch, same):
    trainer.names.read(open_weights(folders[0], trainer.shape))
    with torch.no_grad():
        logp, entropy, routes = references[0].score(batch.tokens, TEMPERATURE)
    found = trainer.score(batch)
    held = torch.arange(LENGTH) < batch.lengths[:, None]
    same(found.logp[held], logp[held])
    same(found.entropy[held], entropy[held])
    run = torch.arange(LENGTH) < (batch.lengths - 1)[:, None]
    assert torch.equal(found.routes[run].sort(-1).values, routes[run].sort(-1).values.to(torch.int16))
    assert (found.routes[~run] == -1).all()


def test_replayed_scores_are_those_of_transformers(trainer, references, folders, batch, same):
    trainer.names.read(open_weights(folders[0], trainer.shape))
    with torch.no_grad():
        logp, _, _ = references[0].score(batch.tokens, TEMPERATURE, Replay(ids=batch.routes))
    same(trainer.score(batch, Replay(ids=batch.routes)).logp[batch.mask], logp[batch.mask])


def given(recipe, ids, batch):
    """The experts, gates and rule of a recipe."""
    if ids is None:
        return None
    gates = batch.gates if recipe.router_replay.gates == "replayed" else None
    return Replay(ids=ids, gates=gates, **rules([recipe.router_replay]))


class Kept(RecipeWeights):
    """A weigher that keeps what it was asked and what it answered, chunk by chunk."""

    def __init__(self, arms):
        super().__init__(arms)
        self.weights = []

    def __call__(self, stats):
        self.weights.append(super().__call__(stats))
        return self.weights[-1]


@pytest.mark.parametrize("name", TRAINABLE)
def test_weights_loss_and_direction_are_those_of_core(name, trainer, references, folders, batch, same):
    recipe = RECIPES[name]
    arms = (Arm(recipe=recipe),)
    mode = recipe.router_replay.mode
    with torch.no_grad():
        live = references[0].score(batch.tokens, TEMPERATURE)
    run = torch.arange(LENGTH) < (batch.lengths - 1)[:, None]
    own = torch.where(run[..., None, None], live[2], -1).to(torch.int16)
    replay = given(recipe, replay_of(mode, own, batch.routes), batch)
    with torch.no_grad():
        logp_old = references[0].score(batch.tokens, TEMPERATURE, replay)[0].where(batch.mask, 0.0)
    logp_ref = logp_old if recipe.terms.reference_kl else None  # the run started from π_old

    # core, on transformers at the new weights
    scored = Scored(batch=batch, logp_old=logp_old, replay=replay, logp_ref=logp_ref)
    minibatch = with_advantages(scored, arms, GROUP)
    references[1].model.zero_grad()
    logp, entropy, _ = references[1].score(batch.tokens, TEMPERATURE, replay)
    stats = minibatch.stats(logp.where(batch.mask, 0.0), entropy if recipe.terms.entropy else None)
    weight = RecipeWeights(arms)(stats)
    loss = total_loss(stats, weight, entropy_weights(stats, recipe) if recipe.terms.entropy else None)
    loss.backward()

    # torchtitan, from its own scores at the old weights to one update at the new ones
    trainer.recipe = recipe.model_copy(update={"optimizer": PLAIN})
    trainer.names.read(open_weights(folders[0], trainer.shape))
    used = given(recipe, replay_of(mode, trainer.score(batch).routes, batch.routes), batch)
    own_old = trainer.score(batch, used).logp.where(batch.mask, 0.0)
    own_ref = None if logp_ref is None else trainer.score_reference(batch, used).where(batch.mask, 0.0)
    trainer.names.read(open_weights(folders[1], trainer.shape))
    trainer.optimizer = optimizer(PLAIN, trainer.model)
    trainer.rate = learning_rate(0, 1, trainer.optimizer)
    kept = Kept(arms)
    done = trainer.update(dataclasses.replace(minibatch, logp_old=own_old, replay=used, logp_ref=own_ref), kept)

    same(torch.cat(kept.weights), weight, 1e-4)
    same(torch.tensor(done.loss), loss.detach(), 1e-4)
    before, expected, apart, size = load_file(folders[1] / "model.safetensors"), references[1].gradients(), 0.0, 0.0
    for key, after in trainer.weights():
        moved = -(after.double() - before[key].double()) * PLAIN.eps / PLAIN.lr
        apart += float((moved - expected[key]).square().sum())
        size += float(expected[key].square().sum())
    assert size > 0
    assert (apart / size) ** 0.5 < 1e-4
