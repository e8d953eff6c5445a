from dataclasses import replace

import pytest
import torch

from firstorder.core.errors import DataError


def test_a_log_probability_of_another_shape_is_refused_by_name(make_stats):
    stats = make_stats()
    for name in ("logp_old", "logp_mu", "mask"):
        with pytest.raises(DataError, match=f"`{name}` must end in"):
            replace(stats, **{name: getattr(stats, name)[:, :-1]})


def test_a_mask_of_numbers_is_refused(make_stats):
    stats = make_stats()
    with pytest.raises(DataError, match="`mask` must be bool"):
        replace(stats, mask=stats.mask.double())


def test_lengths_count_response_tokens_and_never_divide_by_zero(make_stats):
    stats = make_stats()
    mask = stats.mask.clone()
    mask[2] = False
    lengths = replace(stats, mask=mask).lengths
    assert lengths.tolist() == [max(1, sum(row)) for row in mask.tolist()]
    assert lengths[2] == 1


def test_sampled_responses_weigh_equally_and_exhaustive_ones_by_measure(make_stats, same):
    stats = make_stats()
    same(stats.weights, [1 / 6] * 6)
    measure = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.1, 0.1], dtype=torch.float64)
    assert replace(stats, measure=measure).weights is measure


def test_an_advantage_of_a_response_is_that_of_its_tokens(make_stats):
    stats = make_stats()
    assert stats.token_advantage.expand(6, 8)[3].unique().tolist() == [float(stats.advantage[3])]
    per_token = torch.arange(48.0, dtype=torch.float64).view(6, 8)
    assert stats.with_advantage(per_token).token_advantage is per_token


def test_an_ensemble_of_advantages_is_not_read_as_tokens(make_stats):
    square = torch.zeros(4, 4, 4, dtype=torch.float64)
    stats = replace(
        make_stats(),
        logp_theta=square,
        logp_old=square,
        logp_mu=square,
        mask=square == 0,
        kl_mu=None,
        router_shift=None,
    )
    assert stats.with_advantage(torch.ones(4, 4)).token_advantage.shape == (4, 4, 1)
