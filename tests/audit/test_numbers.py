import math
from dataclasses import replace
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import made

from firstorder.core.audit import clustered, numbers
from firstorder.core.audit.seen import Seen
from firstorder.core.audit.table import Estimate
from firstorder.core.formats.chunk import chunks, pad
from firstorder.core.routing import jaccard
from firstorder.core.training import agreement, diagnostics, strata


def measured(chunk):
    seen = Seen(chunk=chunk)
    return numbers.measured(seen, numbers.per_response(seen))


def found(samples, positions=300):
    """The rows of the table, by name."""
    whole = reduce(clustered.merged, (measured(chunk) for chunk in chunks(samples, positions)))
    return {row["quantity"]: row for row in numbers.table(whole, {}).rows}


def values(samples, positions=300):
    return {name: row["value"].value for name, row in found(samples, positions).items()}


def without(samples, *names):
    return [replace(sample, **dict.fromkeys(names)) for sample in samples]


def test_every_quantity_of_the_field_is_there_with_what_it_means():
    rows = found(made(count=12))
    expected = diagnostics.QUANTITIES | strata.QUANTITIES | numbers.QUANTITIES
    assert set(rows) == {*expected, *numbers.ROUTED}
    for name, quantity in expected.items():
        row = rows[name]
        assert (row["unit"], row["formula"], row["alarm"]) == (quantity.unit, quantity.formula, quantity.alarm)
    assert all(row["source"] for row in rows.values())


def test_values_are_those_of_a_training_run():
    samples = made(count=12)
    stats = pad(samples).stats()
    known = diagnostics.diagnose(stats) | strata.finalise(strata.moments(stats))
    mine = values(samples)
    assert {name: mine[name] for name in known} == pytest.approx(
        {name: float(x) for name, x in known.items()}, rel=1e-12, abs=1e-12
    )


def test_values_of_the_routes_are_those_of_a_training_run():
    samples = made(count=12)
    chunk = pad(samples)
    batch = replace_routes(chunk)
    moments = agreement.agreement(
        batch, chunk.routes_old, torch.zeros(chunk.routes.shape[:-1]), chunk.logp_old, chunk.entropy
    )
    mine = values(samples)
    for name in ("route/flip_rate", "route/tokens_flipped", "kl_flipped", "update/entropy"):
        assert mine[name] == pytest.approx(float(moments[name][0] / moments[name][1]), rel=1e-12), name
    made_by = chunk.mask[:, 1:]
    overlap = jaccard(chunk.routes[:, :-1], chunk.routes_old[:, :-1])[made_by].double().mean()
    assert mine["route/jaccard"] == pytest.approx(float(overlap), rel=1e-6)


def replace_routes(chunk):
    """What `agreement` reads of a batch."""

    class Batch:
        mask, routes, logp_mu = chunk.mask, chunk.routes, chunk.logp_mu

    return Batch


def test_means_that_no_run_logs_are_those_of_their_formulas():
    samples = made(count=12)
    stats = pad(samples).stats()
    d = (stats.logp_old - stats.logp_mu)[stats.mask]
    mine = values(samples)
    assert mine["abs_log_ratio"] == pytest.approx(float(d.abs().mean()))
    assert mine["rho_mean"] == pytest.approx(float(d.exp().mean()))
    assert mine["reward"] == pytest.approx(sum(s.reward for s in samples) / len(samples))
    chunk = pad(samples)
    seen = Seen(chunk=chunk)
    calm = chunk.mask & ~seen.agreement.hit
    assert mine["kl_unflipped"] == pytest.approx(-float((stats.logp_old - stats.logp_mu)[calm].mean()))


@given(st.integers(0, 1000), st.floats(0.02, 3.0))
@settings(max_examples=12, deadline=None)
def test_the_share_of_the_largest_is_as_exact_as_it_says(seed, spread):
    samples = made(seed=seed, count=60, spread=spread, layers=1)
    stats = pad(samples).stats()
    d = (stats.logp_old - stats.logp_mu)[stats.mask].abs().sort(descending=True).values
    wanted = 0.01 * len(d)
    whole = int(wanted)
    exact = float((d[:whole].sum() + (wanted - whole) * d[whole]) / d.sum())
    assert values(samples)["top_share"] == pytest.approx(exact, rel=0.19)


def test_the_share_of_the_largest_is_a_hundredth_where_all_are_alike():
    x = torch.zeros(numbers.BINS.count, dtype=torch.float64)
    x[40] = 700.0
    assert float(numbers.top_share(x, 0.3 * x)) == pytest.approx(0.01)


def test_one_token_that_differs_has_all_of_the_difference():
    x, total = torch.zeros(2, numbers.BINS.count, dtype=torch.float64)
    x[0], x[50], total[50] = 999.0, 1.0, 2.5
    assert float(numbers.top_share(x, total)) == 1.0


def test_tokens_that_are_no_numbers_are_left_out_of_every_mean():
    """As if the mask had left them out."""
    samples = made(count=6)
    broken, masked = [], []
    for sample in samples:
        at = int(sample.mask.nonzero()[0, 0])
        mu, mask = sample.logp_mu.clone(), sample.mask.clone()
        mu[at], mask[at] = math.nan, False
        broken.append(replace(sample, logp_mu=mu))
        masked.append(replace(sample, mask=mask))
    routed = {"route/flip_rate", "route/tokens_flipped", "route/jaccard", "update/entropy"}
    a, b = values(broken), values(masked)
    assert {n: x for n, x in a.items() if n not in routed} == pytest.approx(
        {n: x for n, x in b.items() if n not in routed}, rel=1e-9
    )


def test_a_dump_without_the_trainers_log_probs_has_what_is_left():
    mine = values(without(made(count=6), "logp_old"))
    routes = {"route/flip_rate", "route/tokens_flipped", "route/jaccard"}
    assert set(mine) == {"reward", "response_length", "update/entropy"} | routes


def test_a_dump_without_advantages_and_rewards_has_no_quantity_of_them():
    mine = values(without(made(count=6), "advantage", "reward"))
    gone = {"kl_failing", "kl_succeeding", "reward", "reward_pi", "second_order_remainder"}
    assert not gone & set(mine)
    assert "kl" in mine


def test_a_reward_that_is_no_number_costs_its_response_alone():
    samples = made(count=6, steps=1)
    rows = found([replace(samples[0], reward=math.nan), *samples[1:]])
    rest = found(samples[1:])
    for name in ("reward", "reward_pi", "second_order_remainder"):
        assert rows[name]["value"].value == pytest.approx(rest[name]["value"].value)
    assert rows["kl"]["value"].value == pytest.approx(values(samples)["kl"])
    assert rows["kl"]["value"].low is not None


def test_a_fill_of_the_smallest_number_spoils_no_other_interval():
    """-3.4e38 is a log-prob that nothing refuses; exp of its negative is not finite."""
    samples = made(count=6)
    filled = samples[0].logp_old.clone()
    filled[-1] = -3.4e38
    rows = found([replace(samples[0], logp_old=filled), *samples[1:]])
    assert "training_ppl" not in rows
    assert rows["ratio_tail_2"]["value"].low is not None
    assert rows["rollout_ppl"]["value"].low is not None


def test_identical_engines_have_values_and_no_interval():
    samples = [replace(sample, logp_old=sample.logp_mu) for sample in made(count=6)]
    rows = found(samples)
    assert rows["kl"]["value"] == Estimate(value=0.0)
    assert rows["k3_kl"]["value"] == Estimate(value=0.0)
    assert "top_share" not in rows


def test_few_responses_have_no_interval_of_a_squared_product():
    rows = found(made(count=12))
    assert rows["chi2_seq"]["value"].low is None
    assert rows["kl"]["value"].low is not None
    many = found(made(count=60, layers=1))
    assert many["chi2_seq"]["value"].low is not None
