"""Receipts of replay, row by row, and the faults that stop a run."""

from dataclasses import replace as changed

import pytest
import torch

from firstorder.core.errors import ConfigError, ReplayError
from firstorder.core.method.recipe import Recipe
from firstorder.core.quantities import means
from firstorder.core.routing import Replay, replay_rows
from firstorder.core.settings import toml
from firstorder.core.training import inert
from firstorder.core.training.agreement import agreement
from firstorder.core.training.arms import Arm
from firstorder.core.training.backend import Scored, take
from firstorder.core.training.batch import RolloutBatch
from firstorder.core.training.replay import (
    FEWEST,
    QUANTITIES,
    arrived,
    check_given,
    check_replayed,
    differing,
    quantities,
    replayed,
    run_rows,
)

LENGTHS, POSITIONS, LAYERS, EXPERTS = [6, 3, 8, 5], 8, 3, 6


def arm(name, *more, members=None):
    return Arm(recipe=toml.build(Recipe, toml.override(toml.read(name), more)), members=members)


def some_routes(seed, *leading):
    g = torch.Generator().manual_seed(seed)
    order = torch.rand(*leading, len(LENGTHS), POSITIONS, LAYERS, EXPERTS, generator=g).argsort(-1)[..., :2]
    run = run_rows(torch.tensor(LENGTHS), POSITIONS)
    return torch.where(run[..., None, None], order, -1).to(torch.int16)


def make_batch(routes):
    lengths = torch.tensor(LENGTHS).expand(routes.shape[:-3])
    position = torch.arange(POSITIONS)
    mask = (position >= 2) & (position < lengths[..., None])
    return RolloutBatch(
        tokens=torch.ones(mask.shape, dtype=torch.int64),
        mask=mask,
        lengths=lengths,
        logp_mu=torch.where(mask, -1.0, 0.0).double(),
        rewards=torch.zeros(lengths.shape, dtype=torch.float64),
        groups=torch.zeros(lengths.shape, dtype=torch.int64),
        routes=routes,
    )


def given(mode, mu, live):
    """A batch as a backend scores it."""
    batch = make_batch(mu)
    replay = {"R2": live, "R3": mu}[mode]
    logp = torch.where(batch.mask, -1.0, 0.0).double()
    return Scored(batch=batch, logp_old=logp, replay=Replay(ids=replay), differs=differing(batch, live))


def done(scored, live, took=None):
    """What an update that replayed `took` reports."""
    run = run_rows(scored.batch.lengths, POSITIONS)
    given = scored.replay.ids
    took = given if took is None else took
    counts = replay_rows(given.flatten(-4, -3), took.flatten(-4, -3), live.flatten(-4, -3), run.flatten(-2))
    return replayed(counts, run.shape[-1] * run.shape[-2])


def test_every_row_is_counted_once():
    mu, live = some_routes(0), some_routes(1)
    scored = given("R3", mu, live)
    halves = [take(scored, slice(0, 2)), take(scored, slice(2, 4))]
    parts = [done(half, live[rows]) for half, rows in zip(halves, (slice(0, 2), slice(2, 4)), strict=True)]
    whole = done(scored, live)
    for name, (rows, total) in whole.items():
        assert float(rows) == sum(float(part[name][0]) for part in parts)
        assert float(total) == sum(float(part[name][1]) for part in parts)
    run = sum(length - 1 for length in LENGTHS)
    apart = [0] * LAYERS
    for response, length in enumerate(LENGTHS):
        for t in range(length - 1):
            for layer in range(LAYERS):
                apart[layer] += set(mu[response, t, layer].tolist()) != set(live[response, t, layer].tolist())
    shares = {name: float(value) for name, value in means(whole).items()}
    assert [shares[f"replay/rows_changed_layer_{i}"] for i in range(LAYERS)] == pytest.approx([n / run for n in apart])
    assert shares["replay/rows_changed"] == pytest.approx(sum(apart) / run / LAYERS)
    assert (shares["replay/rows_replayed"], shares["replay/rows_live"]) == (1.0, 0.0)
    assert shares["replay/rows_padded"] == pytest.approx(1 - run / (len(LENGTHS) * POSITIONS))
    assert int(scored.differs.sum()) == sum(apart)


def test_routes_that_arrive_are_missing_or_repeat_a_row_are_told_apart():
    routes = some_routes(0)
    shares = {name: float(value) for name, value in means(arrived(make_batch(routes))).items()}
    assert (shares["replay/routes_arrived"], shares["replay/routes_missing"]) == (1.0, 0.0)
    few = shares["replay/routes_repeated"]
    run = sum(length - 1 for length in LENGTHS)
    lost = routes.clone()
    lost[2, :3, 1] = -1  # an engine that skips the rows of a cached prefix in one layer
    shares = {name: float(value) for name, value in means(arrived(make_batch(lost))).items()}
    assert shares["replay/routes_missing_layer_1"] == pytest.approx(3 / run)
    assert shares["replay/routes_arrived_layer_1"] == pytest.approx(1 - 3 / run)
    assert shares["replay/routes_missing"] == pytest.approx(1 / run)
    assert shares["replay/routes_missing_layer_0"] == 0
    filled = routes.clone()
    filled[2, 3:7] = filled[2, 2]  # the last row that was recorded, again and again
    shares = {name: float(value) for name, value in means(arrived(make_batch(filled))).items()}
    assert shares["replay/routes_repeated"] >= 4 / run > few
    assert means(arrived(make_batch(some_routes(0)[..., :1, :].expand(-1, -1, LAYERS, -1).contiguous())))[
        "replay/routes_repeated"
    ] == pytest.approx(1.0)  # one row for all layers


def test_a_dense_model_has_no_rows():
    assert arrived(changed(make_batch(some_routes(0)), routes=None)) == {}


def test_routes_that_are_missing_are_no_flips():
    mu, live = some_routes(0), some_routes(1)
    lost = mu.clone()
    lost[2] = -1
    zeros = torch.zeros(len(LENGTHS), POSITIONS, dtype=torch.float64)
    margin = torch.zeros(len(LENGTHS), POSITIONS, LAYERS, dtype=torch.float64)
    kept = torch.tensor([0, 1, 3])
    found, expected = (
        means(agreement(make_batch(routes), own, margin, zeros, zeros))
        for routes, own in ((lost, live), (torch.where(torch.arange(4)[:, None, None, None] == 2, live, mu), live))
    )
    tokens = make_batch(mu).mask.sum(-1)
    scale = float(tokens.sum()) / float(tokens[kept].sum())
    for name in ("route/flip_rate", "route/tokens_flipped", "route/flip_rate_layer_1"):
        assert float(found[name]) == pytest.approx(float(expected[name]) * scale), name


def test_every_layer_has_its_quantities():
    assert len(quantities(3)) == 4 * len(QUANTITIES)
    assert quantities(2)["replay/rows_changed_layer_1"].unit == "share of tokens"


@pytest.mark.parametrize("mode", ["R2", "R3"])
def test_replay_that_takes_place_goes_on(mode):
    scored = given(mode, some_routes(0), some_routes(1))
    arms = [arm(f"minirl-{mode.lower()}")]
    check_given(scored, arms)
    check_replayed(scored, done(scored, some_routes(1)), arms, fresh=True)


def test_replay_of_ones_own_choice_changes_nothing_and_goes_on():
    """R2 at theta = theta_old, and R3 between engines that agree."""
    live = some_routes(1)
    for mode in ("R2", "R3"):
        scored = given(mode, live, live)
        reported = done(scored, live)
        assert float(reported["replay/rows_changed"][0]) == 0
        check_replayed(scored, reported, [arm(f"minirl-{mode.lower()}")], fresh=True)


ALL = r"all 3 MoE layers"
FAULTS = {
    "nothing was recorded": (lambda mu: torch.full_like(mu, -1), rf"no rows were given to replay in {ALL}; the routes"),
    "a layer was not": (
        lambda mu: torch.where(torch.arange(LAYERS)[:, None] == 2, -1, mu),
        r"no rows were given to replay in MoE layer 2; the routes of the rollout engine are all -1 there",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_routes_that_do_not_arrive_stop_the_run_before_an_update(name):
    spoil, message = FAULTS[name]
    scored = given("R3", spoil(some_routes(0)), some_routes(1))
    with pytest.raises(ReplayError, match=message) as raised:
        check_given(scored, [arm("minirl-r3")])
    assert "\n" not in str(raised.value)
    assert raised.value.code == 1
    check_given(scored, [arm("minirl")])


def test_a_backend_that_gives_nothing_to_replay_stops_the_run():
    scored = changed(given("R2", some_routes(0), some_routes(1)), replay=None)
    with pytest.raises(ReplayError, match=r"mode = R2 is on, but no rows were given to replay in any layer"):
        check_given(scored, [arm("minirl-r2")])
    check_replayed(scored, {}, [arm("minirl-r2")], fresh=True)


@pytest.mark.parametrize("mode", ["R2", "R3"])
def test_a_router_that_replays_nothing_stops_the_run(mode):
    scored, live = given(mode, some_routes(0), some_routes(1)), some_routes(1)
    arms, rows = [arm(f"minirl-{mode.lower()}")], 18 * LAYERS
    for took, seen in (
        (torch.full_like(live, -1), rf"of {rows} rows given to replay 0 were replayed, with rows lost in {ALL}"),
        (
            torch.where(torch.arange(LAYERS)[:, None] == 1, -1, scored.replay.ids),
            r"36 were replayed, .* in MoE layer 1;",
        ),
    ):
        for fresh in (True, False):
            with pytest.raises(ReplayError, match=seen):
                check_replayed(scored, done(scored, live, took), arms, fresh=fresh)
    with pytest.raises(ReplayError, match="0 were replayed"):
        check_replayed(scored, {}, arms, fresh=True)  # a backend that leaves no receipt


def test_replay_of_the_wrong_routes_stops_the_run_where_the_engines_differ():
    mu, live = some_routes(0), some_routes(1)
    scored = given("R3", mu, live)
    wrong = changed(scored, replay=Replay(ids=live))  # R2's routes under the flag of R3
    with pytest.raises(
        ReplayError, match=rf"none changed the router's choice, .* differ at {int(scored.differs.sum())} "
    ):
        check_replayed(wrong, done(wrong, live), [arm("minirl-r3")], fresh=True)
    check_replayed(wrong, done(wrong, live), [arm("minirl-r3")], fresh=False)  # theta may have come closer
    check_replayed(wrong, done(wrong, live), [arm("minirl-r2")], fresh=True)


def test_a_handful_of_rows_may_be_rounding():
    live = some_routes(1)
    mu, flat = live.clone(), live.view(-1, 2)
    places = (flat[:, 0] >= 0).nonzero()[: FEWEST - 1, 0]
    mu.view(-1, 2)[places] = torch.tensor([0, 1], dtype=torch.int16)
    scored = given("R3", mu, live)
    assert 0 < int(scored.differs.sum()) < FEWEST
    wrong = changed(scored, replay=Replay(ids=live))
    check_replayed(wrong, done(wrong, live), [arm("minirl-r3")], fresh=True)


def test_a_member_of_an_ensemble_is_judged_by_its_own_recipe():
    mu, live = some_routes(0, 2), some_routes(1, 2)
    replay = torch.stack([torch.full_like(mu[0], -1), mu[1]])
    scored = changed(given("R3", mu, live), replay=Replay(ids=replay))
    good, bad = [arm("minirl", members=1), arm("minirl-r3", members=1)], [arm("minirl-r3", members=2)]
    check_given(scored, good)
    check_replayed(scored, done(scored, live), good, fresh=True)
    with pytest.raises(ReplayError, match="no rows were given"):
        check_given(scored, bad)


def test_what_cannot_act_is_a_receipt():
    one = inert.receipts([arm("minirl-r2", "schedule.minibatches=1")], mismatch=True)
    assert {name: float(value) for name, value in one.items()} == {
        "inert/ratio": 0.0,
        "inert/router_floor": 0.0,
        "inert/clip": 1.0,
        "inert/correction": 0.0,
        "inert/rejection": 0.0,
        "inert/reference_kl": 0.0,
        "inert/squared_log_ratio": 0.0,
        "inert/router_replay": 1.0,
    }
    assert all(value.shape == () for value in one.values())
    arms = [arm("minirl-r2", "schedule.minibatches=2", members=2), arm("minirl-r3", members=1)]
    found = inert.receipts(arms, mismatch=False)
    assert inert.QUANTITIES.keys() == {f"inert/{part}" for part in inert.PARTS}
    assert found.keys() == inert.QUANTITIES.keys()
    assert found["inert/clip"].tolist() == [0.0, 0.0, 1.0]
    assert found["inert/router_replay"].tolist() == [0.0, 0.0, 1.0]


def test_strict_names_every_part_that_cannot_act():
    inert.check_strict([])
    with pytest.raises(ConfigError, match=r"^--strict: cell 3: a; b; change the recipe or its schedule, or drop --str"):
        inert.check_strict(["a", "b"], "cell 3: ")
