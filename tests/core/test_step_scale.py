"""The step that the effective sample size leaves."""

import math

import pytest
import torch

from firstorder.core.errors import ConfigError
from firstorder.core.method.recipe import Recipe
from firstorder.core.method.stats import TokenStats
from firstorder.core.method.step_scale import effective_share, log_weights, step_scale
from firstorder.core.settings import toml


def test_weights_are_products_over_the_tokens_of_a_response():
    mask = torch.tensor([[True, True], [True, False]])
    theta, mu = torch.tensor([[-1.0, -2.0], [-0.5, -9.0]]), torch.tensor([[-1.5, -1.0], [-1.0, -1.0]])
    stats = TokenStats(logp_theta=theta, logp_old=mu, logp_mu=mu, mask=mask, advantage=torch.ones(2))
    assert log_weights(stats).tolist() == [-0.5, 0.5]


def test_the_share_is_kishs_at_any_size_of_the_weights():
    w = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    wanted = float(w.sum() ** 2 / (w**2).sum() / 3)
    for shift in (0.0, 800.0, -800.0):
        assert float(effective_share(w.log() + shift)) == pytest.approx(wanted, rel=1e-12)
    assert float(step_scale(effective_share(w.log()))) == pytest.approx(math.sqrt(wanted))


def test_weights_that_are_alike_leave_the_step_as_it_is_and_one_among_many_leaves_least():
    assert float(effective_share(torch.full((7,), -3.0))) == 1.0
    assert float(effective_share(torch.tensor([0.0, -1e4, -1e4, -1e4]))) == 0.25
    assert float(effective_share(torch.full((3,), -torch.inf))) == 0.0


def test_members_have_their_own():
    share = effective_share(torch.tensor([[0.0, 0.0], [0.0, -1e4]]))
    assert share.tolist() == [1.0, 0.5]


def test_a_critic_has_no_step_of_this_kind():
    with pytest.raises(ConfigError, match=r"critic.step_scale"):
        toml.build(Recipe, toml.override(toml.read("ppo-critic"), ["critic.step_scale=ess"]))
