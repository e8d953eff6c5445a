import math
from dataclasses import replace
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import made

from firstorder.core.audit.table import Estimate
from firstorder.core.audit.tally import merged, tally
from firstorder.core.formats.chunk import chunks

NAMES = {
    "numbers",
    "by-position",
    "by-turn",
    "by-step",
    "by-version",
    "by-decile",
    "routes-by-layer",
    "routes-by-position",
    "weights",
    "replay",
    "signals",
}


def read(samples, positions=300):
    return reduce(merged, map(tally, chunks(samples, positions)))


def cells(whole):
    """Every number of every table, flat."""
    found = {}
    for table in whole.tables():
        for place, row in enumerate(table.rows):
            for key, cell in row.items():
                parts = (cell.value, cell.low, cell.high) if isinstance(cell, Estimate) else (cell,)
                found |= {(table.name, place, key, i): part for i, part in enumerate(parts)}
    return found


@given(st.integers(0, 1000), st.integers(50, 500))
@settings(max_examples=4, deadline=None)
def test_tables_do_not_depend_on_how_a_dump_is_cut(seed, positions):
    samples = made(seed=seed, count=9)
    whole, cut = cells(read(samples, 10**6)), cells(read(samples, positions))
    assert set(whole) == set(cut)
    for key, value in whole.items():
        if key[:1] == ("weights",) and whole[key[0], key[1], "weight", 0] == "m2po":
            continue  # its clip reads a whole batch
        if isinstance(value, float):
            assert cut[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key
        else:
            assert cut[key] == value, key


def test_chunks_may_be_read_in_any_order():
    parts = list(map(tally, chunks(made(count=9, steps=3), 200)))
    there, back = cells(reduce(merged, parts)), cells(reduce(merged, parts[::-1]))
    assert set(there) == set(back)
    for key, value in there.items():
        assert back[key] == (pytest.approx(value, rel=1e-6, abs=1e-9) if isinstance(value, float) else value), key


def test_a_dump_with_all_columns_has_all_tables():
    assert {table.name for table in read(made(count=4, steps=4)).tables()} == NAMES


@pytest.mark.parametrize(
    ("lacking", "gone"),
    [
        (("routes_old",), {"replay"}),
        (("routes", "routes_old"), {"replay", "routes-by-layer", "routes-by-position"}),
        (("version",), {"by-version"}),
        (("logp_old",), {"weights"}),
        (("logp_mu", "logp_old"), {"weights", "by-decile"}),
        (("entropy", "advantage", "reward", "group"), set()),
    ],
)
def test_a_table_is_left_out_where_its_columns_are(lacking, gone):
    samples = [replace(sample, **dict.fromkeys(lacking)) for sample in made(count=4, steps=4)]
    assert {table.name for table in read(samples).tables()} == NAMES - gone


def test_samples_of_different_columns_are_added_up():
    samples = made(count=6)
    half = [replace(s, routes=None, routes_old=None, reward=None) if i % 3 == 2 else s for i, s in enumerate(samples)]
    found, full = read(half), read([s for i, s in enumerate(samples) if i % 3 < 2])
    rows, expected = ({row["quantity"]: row["value"] for row in each.tables()[0].rows} for each in (found, full))
    for name in ("route/flip_rate", "reward", "kl_flipped"):
        assert rows[name].value == pytest.approx(expected[name].value, rel=1e-12)
        assert rows[name].high == pytest.approx(expected[name].high, rel=1e-9)
    assert rows["kl"].value != pytest.approx(expected["kl"].value, rel=1e-3)


def test_every_token_is_counted():
    samples = made(count=4)
    broken = samples[0].logp_mu.clone()
    broken[samples[0].mask] = math.nan
    found = read([replace(samples[0], logp_mu=broken), *samples[1:]])
    sampled = sum(int(s.mask.sum()) for s in samples)
    lost = int(samples[0].mask.sum())
    assert found.counts == {
        "responses": 8,
        "responses_unusable": 1,
        "tokens": sum(len(s.tokens) for s in samples),
        "tokens_sampled": sampled,
        "tokens_usable": sampled - lost,
        "tokens_unusable": lost,
    }


def test_a_dump_of_which_nothing_is_usable_has_tables_without_means():
    samples = [replace(s, logp_mu=torch.full_like(s.logp_mu, math.nan)) for s in made(count=3)]
    found = {table.name: table for table in read(samples).tables()}
    assert "weights" not in found
    assert [row["unusable"] for row in found["by-step"].rows] == [row["tokens"] for row in found["by-step"].rows]
    assert all(math.isfinite(part) for part in cells(read(samples)).values() if isinstance(part, float))


def test_no_cell_is_a_number_that_json_cannot_hold():
    assert all(math.isfinite(part) for part in cells(read(made(count=5))).values() if isinstance(part, float))


def test_a_column_of_every_table_says_what_its_cells_are():
    for table in read(made(count=5)).tables():
        keys = [column.key for column in table.columns]
        assert len(keys) == len(set(keys))
        for row in table.rows:
            assert set(row) <= set(keys), table.name
        assert table.note
