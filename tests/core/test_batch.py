import pytest
import torch

from firstorder.core.errors import DataError
from firstorder.core.training.backend import Scored, split
from firstorder.core.training.batch import (
    RolloutBatch,
    alignment,
    check_alignment,
    check_expert_ids,
    check_groups,
    check_rewards,
)

LENGTHS = torch.tensor([6, 4, 5])


def fields():
    """Three responses of at most six tokens after a prompt of two, with an environment token in the first."""
    position = torch.arange(6)
    mask = (position >= 2) & (position < LENGTHS[:, None])
    mask[0, 3] = False
    logp = -torch.rand(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.1
    run = (position < LENGTHS[:, None] - 1)[..., None, None]
    routes = torch.where(run, torch.tensor([2, 0]).expand(3, 6, 4, 2), -1).short()
    return {
        "tokens": torch.ones(3, 6, dtype=torch.int64),
        "mask": mask,
        "lengths": LENGTHS.clone(),
        "logp_mu": torch.where(mask, logp, 0.0),
        "rewards": torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64),
        "groups": torch.tensor([0, 0, 1]),
        "routes": routes,
        "measure": torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64),
    }


def changed(name, *index_value):
    value = fields()[name].clone()
    for index, new in index_value:
        value[index] = new
    return {name: value}


def test_a_whole_batch_passes_with_and_without_its_optional_parts():
    check_expert_ids(RolloutBatch(**fields()), 4)
    bare = RolloutBatch(**(fields() | {"routes": None, "measure": None}))
    check_expert_ids(bare, 1)


@pytest.mark.parametrize("name", ["mask", "logp_mu", "lengths", "rewards", "groups", "measure"])
def test_a_field_of_another_size_is_named(name):
    with pytest.raises(DataError, match=f"`{name}` must be "):
        RolloutBatch(**(fields() | {name: fields()[name][1:]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": torch.ones(6, dtype=torch.int64)}, r"`tokens` must be \[..., batch, length\]"),
        ({"routes": fields()["routes"][:, :-1]}, r"`routes` must be \[3, 6, layers, k\], got \[3, 5, 4, 2\]"),
        ({"routes": fields()["routes"][..., 0]}, r"`routes` must be \[3, 6, layers, k\]"),
        ({"routes": fields()["routes"].float()}, "`routes` must be integers"),
        ({"mask": fields()["mask"].long()}, "`mask` must be bool"),
        (changed("rewards", (1, torch.nan)), r"`rewards` must be finite, got 1 that is not, the first nan at \[1\]"),
        (changed("rewards", (1, torch.inf)), "`rewards` must be finite"),
        (
            changed("logp_mu", ((0, 2), torch.nan)),
            r"`logp_mu` must be finite and at most 0 .*, got 1 that is not, the first nan at \[0, 2\]",
        ),
        (changed("logp_mu", ((0, 2), -torch.inf)), "`logp_mu` must be finite and at most 0"),
        (changed("logp_mu", ((0, 2), 0.1), ((2, 4), 0.2)), r"got 2 that are not, the first 0.1 at \[0, 2\]"),
        (changed("logp_mu", ((0, 3), torch.nan)), "`logp_mu` must be 0 where `mask` is False"),
        ({"logp_mu": fields()["logp_mu"].bfloat16()}, "`logp_mu` must be float32 or float64, got bfloat16"),
        (changed("logp_mu", ((0, 3), -0.1)), "`logp_mu` must be 0 where `mask` is False"),
        (changed("lengths", (0, 7)), r"`lengths` must lie in 1\.\.6"),
        (changed("lengths", (2, 0)), r"`lengths` must lie in 1\.\.6"),
        (changed("mask", ((1, 4), True)), "`mask` must be False on padding"),
        (changed("mask", ((1, 0), True)), "`mask` must be False at position 0"),
        (changed("measure", (0, 0.5)), "summing to 1, got a sum of 1.25"),
        (changed("measure", (0, -0.25), (1, 0.75)), "`measure` must be probabilities"),
        (changed("measure", (0, torch.nan)), "`measure` must be probabilities"),
    ],
)
def test_a_batch_that_breaks_the_contract_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        RolloutBatch(**(fields() | change))


def early(routes, *responses):
    """Routes whose last row is missing in some responses."""
    routes, lengths = routes.clone(), fields()["lengths"]
    for response in responses:
        routes[response, lengths[response] - 2] = -1
    return routes


def test_routes_one_row_early_are_refused_if_of_one_response_alone_they_are():
    routes = fields()["routes"]
    for responses in ((0,), (1,), (0, 1, 2)):
        with pytest.raises(DataError, match="end one row early"):
            RolloutBatch(**(fields() | {"routes": early(routes, *responses)}))


def test_the_last_row_may_be_missing_where_others_are():
    routes = fields()["routes"].clone()
    routes[1, 0] = -1  # of a prompt that a prefix cache held
    RolloutBatch(**(fields() | {"routes": early(routes, 0)}))
    with pytest.raises(DataError, match="end one row early"):  # of every response it is a shift, whatever is missing
        RolloutBatch(**(fields() | {"routes": early(routes, 0, 1, 2)}))


def test_routes_one_row_late_are_refused():
    late = torch.roll(fields()["routes"], 1, dims=1)
    with pytest.raises(DataError, match="the rows are shifted by one"):
        RolloutBatch(**(fields() | {"routes": late}))


def test_a_log_probability_array_one_token_off_is_refused():
    for shift in (-1, 1):
        moved = torch.roll(fields()["logp_mu"], shift, dims=1)
        with pytest.raises(DataError, match="the array is shifted"):
            RolloutBatch(**(fields() | {"logp_mu": moved}))


@pytest.mark.parametrize(
    ("row", "message"),
    [([0, 0], "distinct experts"), ([0, 7], "below experts = 4"), ([0, -1], "all ids or all -1")],
)
def test_routes_that_name_no_experts_are_refused(row, message):
    routes = fields()["routes"]
    routes[1, 1, 2] = torch.tensor(row, dtype=routes.dtype)
    with pytest.raises(DataError, match=message):
        check_expert_ids(RolloutBatch(**(fields() | {"routes": routes})), 4)


@pytest.mark.parametrize("shift", [-1, 0, 1])
@pytest.mark.parametrize("seed", range(3))
def test_alignment_finds_by_how_far_one_engine_is_read_off(shift, seed):
    g = torch.Generator().manual_seed(seed)
    trainer = -torch.rand(8, 20, generator=g) * 3
    mask = torch.zeros(8, 20, dtype=torch.bool)
    mask[:, 4:18] = True
    mask[:, 9] = False
    engine = trainer + 0.05 * torch.randn(8, 20, generator=g)
    recorded = torch.roll(engine, shift, dims=-1)
    assert alignment(recorded, trainer, mask) == -shift
    if shift == 0:
        check_alignment(recorded, trainer, mask)
    else:
        with pytest.raises(DataError, match=rf"shifted by {'[+]' if shift > 0 else '-'}1 token"):
            check_alignment(recorded, trainer, mask)


def test_equal_fits_count_as_aligned():
    flat = torch.full((2, 5), -1.0)
    assert alignment(flat, flat, torch.tensor([[False, True, True, True, False]] * 2)) == 0
    assert alignment(flat, flat, torch.zeros(2, 5, dtype=torch.bool)) == 0


def four_responses(groups, rewards=(1.0, 0.0, 0.5, 0.5)):
    return RolloutBatch(
        tokens=torch.ones(4, 3, dtype=torch.int64),
        mask=torch.tensor([[False, True, True]] * 4),
        lengths=torch.full((4,), 3),
        logp_mu=torch.tensor([[0.0, -1.0, -1.0]] * 4),
        rewards=torch.tensor(rewards),
        groups=torch.tensor(groups),
    )


@pytest.mark.parametrize(
    ("groups", "prompts", "size", "message"),
    [
        ([0, 0, 1, 1], 2, 3, r"prompts x schedule.group_size = 2 x 3 responses, got 4"),
        ([0, 0, 1, 1], 1, 2, r"= 1 x 2 responses, got 4"),
        ([0, 1, 0, 1], 2, 2, "lie side by side and answer one prompt"),
        ([0, 0, 0, 1], 2, 2, "lie side by side and answer one prompt"),
    ],
)
def test_groups_that_are_not_those_of_the_schedule_are_refused(groups, prompts, size, message):
    with pytest.raises(DataError, match=message):
        check_groups(four_responses(groups), prompts, size)
    check_groups(four_responses([0, 0, 1, 1]), 2, 2)
    check_groups(four_responses([7, 7, 7, 7]), 2, 2)


@pytest.mark.parametrize(("reward", "got"), [(1.5, "1.5"), (-0.25, "-0.25")])
def test_a_reward_outside_the_range_of_its_task_is_refused(reward, got):
    with pytest.raises(DataError, match=rf"`rewards` must lie in \[0, 1\], got {got}; check the verifier"):
        check_rewards(four_responses([0, 0, 1, 1], (1.0, 0.0, reward, 0.5)), 0.0, 1.0)
    check_rewards(four_responses([0, 0, 1, 1]), 0.0, 1.0)


@pytest.mark.parametrize("parts", [3, 5])
def test_responses_that_do_not_divide_into_mini_batches_are_refused_and_none_is_dropped(parts):
    batch = four_responses([0, 0, 1, 1])
    scored = Scored(batch=batch, logp_old=batch.logp_mu, replay=None)
    with pytest.raises(DataError, match=f"a batch of 4 responses does not divide into {parts} mini-batches"):
        list(split(scored, parts))
    assert [len(part.batch.rewards) for part in split(scored, 2)] == [2, 2]


def test_a_batch_without_responses_is_one_line():
    empty = {name: x[:0] for name, x in fields().items()}
    with pytest.raises(DataError, match=r"at least one response of at least one token, got `tokens` \[0, 6\]"):
        RolloutBatch(**empty)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16])
def test_rewards_of_any_dtype_become_numbers_that_have_a_mean(dtype):
    rewards = torch.tensor([1.0, 0.0, 1.0]).to(dtype)
    batch = RolloutBatch(**(fields() | {"rewards": rewards}))
    assert batch.rewards.dtype is torch.float32
    assert batch.rewards.tolist() == [1.0, 0.0, 1.0]


def test_a_measure_of_many_responses_may_be_float32():
    many = {name: x[[0] * 40_000] for name, x in fields().items()}
    measure = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    RolloutBatch(**(many | {"measure": measure / measure.double().sum()}))


def test_a_token_that_pi_cannot_choose_does_not_shift_an_alignment():
    logp = -torch.arange(1.0, 7.0).expand(2, 6)
    mask = torch.tensor([[False, True, True, True, True, True]] * 2)
    closed = logp.clone()
    closed[0, 1] = -torch.inf
    assert alignment(logp, closed, mask) == 0
    assert alignment(logp, torch.full_like(logp, -torch.inf), mask) == 0


@pytest.mark.parametrize(("value", "shown"), [(torch.nan, "nan"), (0.5, "0.5")])
def test_a_score_that_is_no_log_probability_is_refused_by_name(value, shown):
    batch = four_responses([0, 0, 1, 1])
    logp = batch.logp_mu.clone()
    logp[2, 1] = value
    with pytest.raises(DataError, match=rf"`logp_old` must be .*, got 1 that is not, the first {shown} at \[2, 1\]"):
        Scored(batch=batch, logp_old=logp, replay=None)
    with pytest.raises(DataError, match=r"`logp_old` must be \[4, 3\], as the batch is, got \[4, 2\]"):
        Scored(batch=batch, logp_old=logp[:, 1:], replay=None)
    with pytest.raises(DataError, match="`logp_old` must be float32 or float64, got float16"):
        Scored(batch=batch, logp_old=batch.logp_mu.half(), replay=None)
