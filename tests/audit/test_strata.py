from dataclasses import replace
from functools import reduce

import pytest
import torch
from made import made

from firstorder.core.audit import strata
from firstorder.core.audit.seen import Seen
from firstorder.core.audit.table import Estimate
from firstorder.core.formats.chunk import chunks, pad


def measured(samples, positions=300):
    return reduce(strata.merged, (strata.measured(Seen(chunk=chunk)) for chunk in chunks(samples, positions)))


def tables(samples):
    return {table.name: table for table in strata.tables(measured(samples))}


def versioned(samples, behind):
    """Tokens sampled by older weights, as many versions behind the step as `behind` says of their position."""
    return [
        replace(s, version=torch.where(s.mask, 10 + s.step - behind(torch.arange(len(s.tokens))), -1)) for s in samples
    ]


def test_every_table_counts_every_sampled_token_once():
    samples = versioned(made(count=8), lambda t: t % 3)
    sampled = sum(int(s.mask.sum()) for s in samples)
    found = tables(samples)
    assert set(found) == {"by-position", "by-turn", "by-step", "by-version"}
    for table in found.values():
        assert sum(row["tokens"] for row in table.rows) == sampled
        assert {column.key for column in table.columns} == set(table.rows[0])


def test_means_of_a_part_are_those_of_its_tokens():
    samples = made(count=8)
    stats = pad(samples).stats()
    d = stats.logp_old - stats.logp_mu
    for row in tables(samples)["by-step"].rows:
        of = d[[s.step == int(row["part"]) for s in samples]][stats.mask[[s.step == int(row["part"]) for s in samples]]]
        assert row["kl"].value == pytest.approx(-float(of.mean()))
        assert row["abs_log_ratio"].value == pytest.approx(float(of.abs().mean()))
        assert row["k3_kl"].value == pytest.approx(float((of.exp() - 1 - of).mean()))
        assert row["ratio_tail_2"].value == float((of.abs() > 0.6931).double().mean())


def test_a_shift_of_the_last_turn_is_seen_there():
    samples = [
        replace(s, logp_old=torch.where(Seen(chunk=pad([s])).turn[0] == 2, s.logp_old - 0.5, s.logp_old))
        for s in made(count=30)
    ]
    first, second = tables(samples)["by-turn"].rows
    assert (first["part"], second["part"]) == ("1", "2")
    assert second["kl"].low > 0.4
    assert first["kl"].high < 0.1


def test_stale_tokens_are_seen_by_their_version():
    samples = versioned(made(count=30), lambda t: (t < 12).long())
    samples = [replace(s, logp_old=s.logp_old - 0.3 * (s.version == 9 + s.step).double() * s.mask) for s in samples]
    fresh, stale = tables(samples)["by-version"].rows
    assert (fresh["part"], stale["part"]) == ("0", "1")
    assert stale["kl"].low > 0.2
    assert fresh["kl"].high < 0.1


def test_staleness_is_against_the_newest_of_the_step():
    samples = versioned(made(count=8, steps=3), lambda t: t % 4)
    found = strata.staleness(measured(samples, 100))
    behind = [torch.arange(len(s.tokens))[s.mask] % 4 for s in samples]
    assert found["staleness_mean"].value == pytest.approx(float(torch.cat(behind).double().mean()))
    n, x = (torch.tensor([float(f(b)) for b in behind], dtype=torch.float64) for f in (len, torch.sum))
    mean = x.sum() / n.sum()
    error = ((x - mean * n).square().sum() * len(n) / (len(n) - 1)).sqrt() / n.sum()
    half = found["staleness_mean"].high - found["staleness_mean"].value
    assert half == pytest.approx(2.0687 * float(error), rel=1e-3)  # t of 23
    assert found["staleness_max"] == Estimate(value=3.0)


def test_a_version_may_be_a_time_in_milliseconds():
    now = 1_795_866_161_000
    samples = [replace(s, version=torch.where(s.mask, now - 1000 * (i % 2), -1)) for i, s in enumerate(made(count=4))]
    assert [row["part"] for row in tables(samples)["by-version"].rows] == ["0", "1000"]


def test_tokens_of_an_unknown_version_are_in_no_row():
    samples = [replace(s, version=torch.full_like(s.version, -1)) for s in made(count=3)]
    assert "by-version" not in tables(samples)
    assert strata.staleness(measured(samples)) == {}


def test_unusable_tokens_are_counted_where_they_are():
    samples = []
    for sample in made(count=4):
        mu = sample.logp_mu.clone()
        mu[sample.mask.nonzero()[0, 0]] = torch.nan
        samples.append(replace(sample, logp_mu=mu))
    first, *others = tables(samples)["by-position"].rows
    assert (first["tokens"], first["unusable"], first["kl"]) == (8, 8, None)
    assert all(row["unusable"] == 0 for row in others)


def test_what_a_dump_has_no_columns_for_is_no_column():
    samples = [replace(s, logp_old=None, routes_old=None) for s in made(count=3)]
    assert [column.key for column in tables(samples)["by-step"].columns] == ["part", "tokens", "unusable", "responses"]


def test_ranges_of_ranks_and_turns_meet():
    ranks = torch.arange(1, 5000)
    names = [strata.doubling(row) for row in strata.octave(ranks).unique().tolist()]
    assert names[:4] == ["1", "2-3", "4-7", "8-15"]
    rows = strata.turn_row(ranks)
    assert (rows.diff() >= 0).all()
    for row in rows.unique().tolist():
        inside = ranks[rows == row].tolist()
        first, _, last = strata.turns(row).partition("-")
        assert inside[0] == int(first)
        if row < int(rows.max()):
            assert inside[-1] == int(last or first)
