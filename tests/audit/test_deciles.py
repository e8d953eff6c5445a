from dataclasses import replace
from functools import reduce
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import made

from firstorder.core.audit import clustered, deciles
from firstorder.core.audit.seen import Seen
from firstorder.core.formats.chunk import chunks, pad


def table(samples, positions=300):
    parts = [deciles.measured(Seen(chunk=chunk)) for chunk in chunks(samples, positions)]
    return deciles.table(reduce(clustered.merged, parts))


def test_rows_have_about_a_tenth_of_the_tokens_each():
    rows = table(made(count=100, layers=1)).rows
    tokens = torch.tensor([float(row["tokens"]) for row in rows])
    assert len(rows) == 10
    assert ((tokens / tokens.sum() - 0.1).abs() < 0.05).all()


def test_means_are_those_of_the_tokens_between_the_borders():
    samples = made(count=20)
    stats = pad(samples).stats()
    d, x = (stats.logp_old - stats.logp_mu)[stats.mask], -stats.logp_mu[stats.mask]
    place = deciles.BINS.place(x)
    rows = table(samples).rows
    borders = deciles.tenths(torch.bincount(place, minlength=deciles.BINS.count))
    for (first, last), row in zip(borders, rows[::-1], strict=True):
        inside = (place >= first) & (place <= last)
        assert row["tokens"] == int(inside.sum())
        assert row["kl"].value == pytest.approx(-float(d[inside].mean()))
        assert row["abs_log_ratio"].value == pytest.approx(float(d[inside].abs().mean()))


def test_intervals_are_those_of_the_responses():
    samples = made(count=20)
    seen = Seen(chunk=pad(samples))
    place = deciles.BINS.place(-seen.chunk.logp_mu)
    first, last = deciles.tenths(torch.bincount(place[seen.usable], minlength=deciles.BINS.count))[3]
    inside = seen.usable & (place >= first) & (place <= last)
    x, n = torch.where(inside, -seen.d, 0.0).sum(-1), inside.sum(-1).double()
    mean, size = x.sum() / n.sum(), len(n)
    variance = (x - mean * n).square().sum() * size / (size - 1) / n.sum() ** 2
    row = table(samples).rows[::-1][3]
    assert row["kl"].high - row["kl"].value == pytest.approx(
        clustered.student(size - 1) * float(variance.sqrt()), rel=1e-6
    )


def test_a_temperature_is_seen_as_a_disagreement_that_grows_with_improbability():
    samples = [replace(s, logp_old=1.2 * s.logp_mu) for s in made(count=40, layers=1)]
    means = [row["kl"].value for row in table(samples).rows]
    assert means == sorted(means, reverse=True)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30).filter(any))
def test_tenths_hold_every_token_once(tokens):
    x = torch.tensor(tokens, dtype=torch.float64)
    pieces = deciles.tenths(x)
    assert len(pieces) <= 10
    assert sum(float(x[first : last + 1].sum()) for first, last in pieces) == float(x.sum())
    assert all(a[1] < b[0] for a, b in pairwise(pieces))


def test_a_dump_whose_tokens_are_all_certain_has_one_row():
    samples = [replace(s, logp_mu=torch.zeros_like(s.logp_mu)) for s in made(count=3)]
    (row,) = table(samples).rows
    assert row["part"].endswith("to 1")


def test_without_the_trainers_log_probs_tokens_are_counted():
    rows = table([replace(s, logp_old=None, routes_old=None) for s in made(count=30)]).rows
    assert all(set(row) == {"part", "tokens"} for row in rows)
