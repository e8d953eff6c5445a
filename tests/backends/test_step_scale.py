"""A step of the training engine that is scaled by what is left of the effective sample size."""

from pathlib import Path

import pytest
import torch

from firstorder.backends.torchtitan.config import Torchtitan
from firstorder.backends.torchtitan.trainer import Trainer
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.step_scale import effective_share
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm, RecipeWeights, with_advantages
from firstorder.core.training.backend import Scored
from firstorder.core.training.batch import RolloutBatch


def batch_of(log_mu):
    g = torch.Generator().manual_seed(3)
    lengths = torch.tensor([20, 7, 15, 9])
    position = torch.arange(20)
    mask = (position < lengths[:, None]) & (position >= 3)
    tokens = torch.where(position < lengths[:, None], torch.randint(2, 32, (4, 20), generator=g), 0)
    return RolloutBatch(
        tokens=tokens,
        mask=mask,
        lengths=lengths,
        logp_mu=torch.where(mask, log_mu, 0.0).double(),
        rewards=torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64),
        groups=torch.arange(4) // 2,
    )


def stepped(folder, out: Path, *changes):
    """The weights before and after an update, what it reports, and the log-probs that it met."""
    recipe = toml.build(Recipe, toml.override(toml.read("minirl"), ["optimizer.lr=0.001", *changes]))
    settings = Torchtitan(model=str(folder), dtype="float32", pack_length=32, microbatch_rows=1)
    trainer, arms = Trainer(settings, recipe, 1.0, out), (Arm(recipe=recipe),)
    batch = batch_of(torch.full((4, 20), -3.0))
    logp = trainer.score(batch).logp.where(batch.mask, 0.0)
    scored = with_advantages(Scored(batch=batch, logp_old=logp, replay=None), arms, 2)
    before = {name: w.double().clone() for name, w in trainer.weights()}
    done = trainer.update(scored, RecipeWeights(arms))
    moved = torch.cat([(w.double() - before[name]).flatten() for name, w in trainer.weights()])
    rates = [group["lr"] for one in trainer.optimizer for group in one.param_groups]
    return moved, done, (logp - batch.logp_mu).sum(-1), rates


def test_the_step_is_the_plain_one_times_the_scale_of_all_responses(shape, write_model, tmp_path):
    folder = write_model(tmp_path, shape)
    plain, quiet, log_w, rates = stepped(folder, tmp_path / "plain")
    scaled, done, *_, kept = stepped(folder, tmp_path / "scaled", "optimizer.step_scale=ess")
    assert quiet.step_scale is None
    assert done.step_scale == pytest.approx(float(effective_share(log_w).sqrt()), rel=1e-4)
    assert done.step_scale < 0.95
    assert kept == rates == [0.001] * len(rates)  # the schedule goes on from the rate that it set
    torch.testing.assert_close(scaled, plain * done.step_scale, rtol=1e-3, atol=2e-7)
