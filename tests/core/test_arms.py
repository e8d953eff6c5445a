from dataclasses import replace

import pytest
import torch

from firstorder.core.errors import DataError
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.value import gae
from firstorder.core.settings import toml
from firstorder.core.training.arms import Arm, RecipeWeights, with_advantages
from firstorder.core.training.backend import Scored, split, take
from firstorder.core.training.batch import RolloutBatch

NAMES = ("minirl-critic", "minirl", "ppo-critic", "reinforce")


def recipe(name, *more):
    return toml.build(Recipe, toml.override(toml.read(name), more))


def scored(lead=(), size=6, length=7):
    """A scored batch with environment tokens inside its responses."""
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(*lead, size, length, generator=g) < 0.7
    mask[..., 0], mask[..., 1], mask[..., 3] = False, True, False
    logp = -torch.rand(*lead, size, length, generator=g, dtype=torch.float64) - 0.1
    batch = RolloutBatch(
        tokens=torch.randint(4, mask.shape, generator=g),
        mask=mask,
        lengths=torch.full(mask.shape[:-1], length),
        logp_mu=torch.where(mask, logp, 0.0),
        rewards=torch.randn(mask.shape[:-1], generator=g, dtype=torch.float64),
        groups=(torch.arange(size) // 3).expand(mask.shape[:-1]),
    )
    values = torch.randn(mask.shape, generator=g, dtype=torch.float64)
    return Scored(batch=batch, logp_old=0.9 * batch.logp_mu, replay=None, values=values)


def member(whole, i):
    """One member of an ensemble as a batch without an ensemble axis."""
    batch = replace(whole.batch, **{name: x[i] for name, x in vars(whole.batch).items() if x is not None})
    return replace(whole, batch=batch, logp_old=whole.logp_old[i], values=whole.values[i])


def test_arms_with_and_without_a_critic_lie_side_by_side_as_if_alone(same):
    whole = scored(lead=(4,))
    together = with_advantages(whole, tuple(Arm(recipe=recipe(name), members=1) for name in NAMES), 3)
    assert together.advantage.shape == together.returns.shape == (4, 6, 7)
    weights = RecipeWeights(tuple(Arm(recipe=recipe(name), members=1) for name in NAMES))(
        together.stats(whole.logp_old)
    )
    for i, name in enumerate(NAMES):
        arms = (Arm(recipe=recipe(name)),)
        alone = with_advantages(member(whole, i), arms, 3)
        assert alone.advantage.ndim == (2 if recipe(name).has_critic else 1)
        stats = alone.stats(alone.logp_old)
        mask = stats.mask
        same(together.advantage[i][mask], stats.token_advantage.expand(mask.shape)[mask])
        same(weights[i], RecipeWeights(arms)(stats))


def test_a_critic_s_advantage_is_its_gae_and_its_target_its_own_lambda_return(same):
    one = scored()
    method = recipe("ppo-critic", "advantage.gae_lambda=0.3")
    found = with_advantages(one, (Arm(recipe=method),), 3)
    expected = gae(one.values, one.batch.rewards, one.batch.mask, 0.3)
    same(found.advantage, expected)
    same(found.returns, torch.where(one.batch.mask, expected + one.values, 0.0))


def test_without_a_critic_an_advantage_is_that_of_a_response():
    bare = replace(scored(), values=None)
    found = with_advantages(bare, (Arm(recipe=recipe("minirl")),), 3)
    assert found.advantage.shape == (6,)
    assert found.returns is None


def test_a_critic_that_gave_no_values_is_missed():
    with pytest.raises(DataError, match="this backend has scored none; choose another"):
        with_advantages(replace(scored(), values=None), (Arm(recipe=recipe("minirl-critic")),), 3)


def test_a_batch_that_does_not_divide_into_groups_is_refused():
    with pytest.raises(DataError, match="a batch of 6 responses does not divide into groups of 4"):
        with_advantages(scored(), (Arm(recipe=recipe("minirl")),), 4)


@pytest.mark.parametrize("lead", [(), (4,)])
def test_mini_batches_hold_the_rows_of_every_field(lead):
    arms = tuple(Arm(recipe=recipe(name), members=1) for name in NAMES) if lead else (Arm(recipe=recipe(NAMES[0])),)
    whole = with_advantages(scored(lead=lead), arms, 3)
    parts = list(split(whole, 2))
    for name in ("logp_old", "values", "advantage", "returns"):
        axis = -2 if getattr(whole, name).ndim == len(lead) + 2 else -1
        assert torch.equal(torch.cat([getattr(p, name) for p in parts], dim=axis), getattr(whole, name))
    for name in ("tokens", "mask", "logp_mu"):
        assert torch.equal(torch.cat([getattr(p.batch, name) for p in parts], dim=-2), getattr(whole.batch, name))
    assert torch.equal(take(whole, slice(2, 5)).batch.rewards, whole.batch.rewards[..., 2:5])
    assert parts[0].replay is None
