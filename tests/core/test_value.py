import statistics
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstorder.core.method.value import QUANTITIES, explained_variance, gae, lambda_returns, value_loss, value_moments
from firstorder.core.quantities import add, means

LAMBDAS = st.one_of(st.sampled_from([0.0, 0.5, 0.95, 1.0]), st.floats(0.0, 1.0))


def batch(seed, size=5, length=9, lead=()):
    """Values, rewards and masks with holes; one response has no token, one has only its last."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(*lead, size, length, generator=g, dtype=torch.float64)
    rewards = torch.randn(*lead, size, generator=g, dtype=torch.float64)
    mask = torch.rand(*lead, size, length, generator=g) < 0.6
    mask[..., 0, :] = False
    mask[..., 1, :] = torch.arange(length) == length - 1
    return values, rewards, mask


def slow(values, reward, mask, lam):
    """A_t = Σ_l λ^l d_{t+l} of one response over plain numbers, token by token; 0 off the mask."""
    here = [i for i, on in enumerate(mask.tolist()) if on]
    seen = [values[i].item() for i in here] + [reward.item()]
    d = [after - before for before, after in pairwise(seen)]
    found = [0.0] * len(mask)
    for t, i in enumerate(here):
        found[i] = sum(lam**k * residual for k, residual in enumerate(d[t:]))
    return found


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), lam=LAMBDAS)
def test_an_advantage_is_the_sum_of_discounted_residuals_over_response_tokens(same, seed, lam):
    values, rewards, mask = batch(seed)
    expected = [slow(v, r, m, lam) for v, r, m in zip(values, rewards, mask, strict=True)]
    same(gae(values, rewards, mask, lam), expected)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), lam=LAMBDAS)
def test_a_return_is_the_advantage_and_the_value(same, seed, lam):
    values, rewards, mask = batch(seed)
    same(lambda_returns(values, rewards, mask, lam), torch.where(mask, gae(values, rewards, mask, lam) + values, 0.0))


def test_at_one_the_return_is_the_reward_bit_for_bit():
    values, rewards, mask = batch(0)
    expected = torch.where(mask, rewards[:, None], 0.0)
    assert torch.equal(lambda_returns(values, rewards, mask, 1.0), expected)
    assert torch.equal(gae(values, rewards, mask, 1.0), torch.where(mask, rewards[:, None] - values, 0.0))


def test_at_zero_an_advantage_is_the_step_to_the_next_value_of_a_response_token():
    values, mask = torch.tensor([[7.0, 0.1, 9.0, 0.4, 9.0, 0.6, 9.0]]), torch.tensor([[0, 1, 0, 1, 0, 1, 0]]).bool()
    found = gae(values, torch.ones(1), mask, 0.0)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.3, 0.0, 0.2, 0.0, 0.4, 0.0]]))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), lam=LAMBDAS)
def test_values_off_the_mask_are_never_read(seed, lam):
    values, rewards, mask = batch(seed)
    broken = torch.where(mask, values, torch.nan)
    assert torch.equal(gae(broken, rewards, mask, lam), gae(values, rewards, mask, lam))
    assert torch.equal(value_loss(broken, values, mask), value_loss(values, values, mask))
    found, expected = (explained_variance(means(value_moments(v, 2 * values, mask))) for v in (broken, values))
    assert found == expected


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), lam=LAMBDAS)
def test_tokens_that_the_policy_did_not_choose_may_be_cut_out(same, seed, lam):
    """A response with environment tokens in it has the advantages of its response tokens alone."""
    values, rewards, mask = batch(seed)
    whole = gae(values, rewards, mask, lam)
    for row in range(len(mask)):
        on = mask[row]
        alone = gae(values[row, on][None], rewards[row, None], torch.ones(1, int(on.sum()), dtype=torch.bool), lam)
        same(whole[row, on], alone[0])
    padded = torch.cat([mask, torch.zeros(5, 4, dtype=torch.bool)], dim=1)
    longer = torch.cat([values, torch.full((5, 4), torch.nan, dtype=torch.float64)], dim=1)
    assert torch.equal(gae(longer, rewards, padded, lam)[:, :9], whole)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), lam=LAMBDAS)
def test_values_that_are_all_the_reward_leave_no_advantage(seed, lam):
    _, rewards, mask = batch(seed)
    values = rewards[:, None].expand(mask.shape)
    assert (gae(values, rewards, mask, lam) == 0).all()


def test_an_ensemble_is_its_members(same):
    values, rewards, mask = batch(1, lead=(3,))
    whole, loss = gae(values, rewards, mask, 0.7), value_loss(values, 2 * values, mask)
    for i in range(3):
        same(whole[i], gae(values[i], rewards[i], mask[i], 0.7))
        same(loss[i], value_loss(values[i], 2 * values[i], mask[i]))


def test_the_value_loss_pulls_every_response_token_s_value_towards_its_return(same):
    values, _, mask = batch(2)
    returns = torch.randn(mask.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    leaves = [values.clone().requires_grad_(), returns.clone().requires_grad_()]
    value_loss(*leaves, mask).backward()
    on = mask.sum()
    same(value_loss(values, returns, mask), ((values - returns)[mask].square().sum() / (2 * on)))
    same(leaves[0].grad, torch.where(mask, (values - returns) / on, 0.0))
    assert leaves[1].grad is None


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_explained_variance_is_that_of_all_tokens_of_all_batches(seed):
    several = [(values, 0.5 * values + 1, mask) for values, _, mask in (batch(seed), batch(seed + 1, size=8))]
    sums = {}
    for one in several:
        sums = add(sums, value_moments(*one))
    left = [x for v, g, m in several for x in (g - v)[m].tolist()]
    whole = [x for _, g, m in several for x in g[m].tolist()]
    found = float(explained_variance(means(sums))["critic/vf_explained_var"])
    assert found == pytest.approx(1 - statistics.pvariance(left) / statistics.pvariance(whole), abs=1e-9)


def test_a_perfect_value_explains_all_and_a_constant_nothing():
    _, returns, mask = batch(4, length=30)
    returns = returns[:, None] * torch.arange(30)

    def explained(values):
        return float(explained_variance(means(value_moments(values, returns, mask)))["critic/vf_explained_var"])

    assert explained(returns) == 1
    assert explained(returns + 5.0) == pytest.approx(1)
    assert explained(torch.full_like(returns, 3.0)) == pytest.approx(0)
    assert explained(-returns) < 0


def test_without_a_critic_nothing_is_summed_or_explained():
    _, _, mask = batch(0)
    assert value_moments(None, None, mask) == explained_variance({}) == {}


def test_what_a_critic_logs_is_described():
    assert set(QUANTITIES) == {"critic/vf_loss", "critic/vf_explained_var"}
    assert all(q.formula and q.unit and q.source for q in QUANTITIES.values())


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 1.0, 1e9])
def test_returns_that_do_not_vary_leave_nothing_to_explain(constant):
    values, _, mask = batch(3)
    found = explained_variance(means(value_moments(values, torch.full_like(values, constant), mask)))
    assert not found["critic/vf_explained_var"].isfinite()


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_rewards_of_any_dtype_make_returns(same, dtype):
    values, _, mask = batch(2)
    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    same(lambda_returns(values, rewards.to(dtype), mask, 0.5), lambda_returns(values, rewards.double(), mask, 0.5))
