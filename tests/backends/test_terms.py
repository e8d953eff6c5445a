"""Terms beside the weights on the training engine: plain autograd on the same scores, and steps that log each."""

import pytest
import torch

from firstorder.backends.checks import check_method
from firstorder.backends.pair import EnginePair, RunSettings
from firstorder.backends.torchtitan import trainer as module
from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.torchtitan.head import ScoringHead
from firstorder.backends.torchtitan.trainer import Trainer
from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.surrogate import surrogate_loss
from firstorder.core.routing import Replay
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm, RecipeWeights, with_advantages
from firstorder.core.training.batch import RolloutBatch
from firstorder.core.training.loop import train

ALL = ["terms.reference_kl=0.7", "terms.entropy=0.3", "terms.squared_log_ratio=0.4"]
NORMS = {"minirl-r2": lambda mask: 1.0, "grpo": lambda mask: mask.sum(-1, keepdim=True), "dapo": lambda mask: 9.75}


def recipe_of(name, *changes):
    sizes = ["schedule.prompts=2", "schedule.group_size=2", "schedule.steps=3", "schedule.minibatches=1"]
    return toml.build(Recipe, toml.override(toml.read(name), [*sizes, "optimizer.lr=0.001", *changes]))


def batch_of():
    g = torch.Generator().manual_seed(3)
    lengths = torch.tensor([20, 7, 15, 9])
    position = torch.arange(20)
    mask = (position < lengths[:, None]) & (position >= 3)  # of 17, 4, 12 and 6 response tokens
    return RolloutBatch(
        tokens=torch.where(position < lengths[:, None], torch.randint(2, 32, (4, 20), generator=g), 0),
        mask=mask,
        lengths=lengths,
        logp_mu=torch.where(mask, -3.0, 0.0).double(),
        rewards=torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64),
        groups=torch.arange(4) // 2,
        routes=torch.where((position < lengths[:, None] - 1)[..., None, None], torch.arange(8).view(4, 2), -1).short(),
    )


@pytest.fixture(scope="module")
def folder(shape, write_model, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), shape)


def trainer_of(folder, out, recipe, **changes):
    settings = Torchtitan(model=str(folder), dtype="float32", pack_length=32, microbatch_rows=1, **changes)
    return Trainer(settings, recipe, 0.8, out)


def moved(trainer):
    """Its weights away from those of its reference."""
    g = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in trainer.model.parameters():
            p.to_local().add_(0.02 * torch.randn(p.shape, generator=g))  # a rank alone holds all
    return trainer


def pair_of(trainer, recipe):
    run = RunSettings(
        recipe=recipe, seed=0, evaluate_every=0, evaluate_prompts=1, probe_prompts=1, probe_limit=1.0, longest=9
    )
    pair = EnginePair(trainer, type("Engine", (), {"emulated": False}), None, run)
    pair.rollout, pair.sync_weights = lambda step: batch_of(), lambda: None
    return pair


def gradient(trainer, recipe, weigh, monkeypatch):
    """The gradient of an update, by the name of its parameter, before a step is taken."""
    found = {}

    def keep(self, total, scale=1.0):
        found.update({name: p.grad.full_tensor().double().clone() for name, p in self.model.named_parameters()})
        return 1.0

    scored = with_advantages(pair_of(trainer, recipe).score(batch_of())[0], (Arm(recipe=recipe),), 2)
    monkeypatch.setattr(Trainer, "_step", keep)
    trainer.update(scored, weigh)
    return found


@pytest.mark.parametrize("name", NORMS)
def test_the_gradient_of_an_update_is_that_of_the_published_losses(name, folder, tmp_path, monkeypatch, same):
    recipe, bare = recipe_of(name, *ALL), recipe_of(name)
    trainer = moved(trainer_of(folder, tmp_path, recipe, loss_chunks=4))
    weigh = RecipeWeights((Arm(recipe=recipe),))
    found = gradient(trainer, recipe, weigh, monkeypatch)

    def published(stats, weight, bonus):
        p, q, m = stats.logp_theta, stats.logp_ref, stats.logp_mu
        terms = 0.7 * ((q - p).exp() - (q - p) - 1) + 0.4 * (p - m) ** 2 - 0.3 * stats.entropy
        per_response = torch.where(stats.mask, terms / NORMS[name](stats.mask), 0.0).sum(-1)
        return surrogate_loss(stats, weight) + per_response.mean()

    monkeypatch.setattr(module, "total_loss", published)
    without = RecipeWeights((Arm(recipe=bare),))
    expected = gradient(trainer, recipe, without, monkeypatch)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        same(found[key], value, 1e-4)
    monkeypatch.setattr(module, "total_loss", lambda stats, weight, bonus: surrogate_loss(stats, weight))
    policy = gradient(trainer, recipe, without, monkeypatch)
    assert any((policy[key] - value).abs().max() > 0.1 * value.abs().max() for key, value in expected.items())
    values = {key: float(above / below) for key, (above, below) in weigh.moments.items() if key.startswith("terms/")}
    assert list(values) == ["terms/reference_kl", "terms/entropy", "terms/squared_log_ratio"]
    assert min(values.values()) > 0


def test_three_steps_log_each_term_and_the_reference_stays_where_the_run_started(folder, tmp_path):
    recipe = recipe_of("minirl-r2", *ALL)
    trainer, logs = trainer_of(folder, tmp_path / "run", recipe), []
    pair, home = pair_of(trainer, recipe), trainer.score(batch_of()).logp.where(batch_of().mask, 0.0)
    routes = Replay(ids=trainer.score(batch_of()).routes)
    assert torch.equal(trainer.score_reference(batch_of(), routes).where(batch_of().mask, 0.0), home)
    train((Arm(recipe=recipe),), pair, on_step=logs.append)
    names = ["terms/reference_kl", "terms/entropy", "terms/squared_log_ratio"]
    for log in logs:
        assert [name for name in log.metrics if name.startswith("terms/")] == names
        assert log.receipts["inert/reference_kl"] == 0
    values = [[float(log.metrics[name]) for name in names] for log in logs]
    assert values[0][0] == 0.0
    assert all(kl > 0 for kl, *_ in values[1:])
    assert all(entropy > 0 and squared > 0 for _, entropy, squared in values)
    assert set(names) <= set(pair.quantities)
    assert not torch.equal(trainer.score(batch_of(), routes).logp.where(batch_of().mask, 0.0), home)
    assert torch.equal(trainer.score_reference(batch_of(), routes).where(batch_of().mask, 0.0), home)

    trainer.save(3)
    resumed = trainer_of(folder, tmp_path / "run", recipe)
    resumed.load(3)
    assert torch.equal(resumed.score(batch_of()).logp, trainer.score(batch_of()).logp)
    assert torch.equal(resumed.score_reference(batch_of(), routes).where(batch_of().mask, 0.0), home)


def test_a_recipe_without_reference_holds_no_second_model(folder, tmp_path):
    assert trainer_of(folder, tmp_path, recipe_of("minirl", "terms.entropy=0.1")).reference is None


def test_an_entropy_that_is_asked_for_with_its_gradient_has_it(same):
    torch.manual_seed(0)
    hidden, labels = torch.randn(1, 20, 32, requires_grad=True), torch.randint(0, 40, (1, 20))
    for chunks in (1, 4):
        made = ScoringHead.Config(in_features=32, out_features=40, chunks=chunks).build()
        logp, entropy = made(hidden, labels, 0.7, False, True)
        plain = made(hidden, labels, 0.7, True)
        same(logp, plain[0], 1e-6)
        same(entropy, plain[1], 1e-6)
        every = (made(hidden).double() / 0.7).log_softmax(-1)
        expected = torch.autograd.grad(-(every.exp() * every).sum(), [hidden, made.weight])
        for found, value in zip(torch.autograd.grad(entropy.sum(), [hidden, made.weight]), expected, strict=True):
            same(found, value, 1e-5)


def test_a_kl_over_the_vocabulary_is_refused():
    with pytest.raises(ConfigError, match="set unbiased"):
        check_method(recipe_of("minirl", "terms.reference_kl=0.1", "terms.reference_estimator=full"))
