import pytest
from made import made

from firstorder.core.audit.bounds import RANGES, possible, span
from firstorder.core.audit.numbers import QUANTITIES
from firstorder.core.audit.replays import QUANTITIES as REPLAYED
from firstorder.core.audit.strata import STALENESS
from firstorder.core.audit.table import Column, Estimate, Table
from firstorder.core.audit.tally import tally
from firstorder.core.audit.weights import COLUMNS
from firstorder.core.formats.chunk import pad
from firstorder.core.training import backend, diagnostics, strata


def table(key, head, *cells, **others):
    return Table(
        name="t",
        title="t",
        columns=(Column(key=key, title=key, unit=head),),
        rows=tuple({key: c, **others} for c in cells),
    )


def test_a_share_near_nothing_is_not_below_it():
    found = possible(table("x", "share of tokens", Estimate(value=0.01, low=-0.01, high=0.03), None, 3))
    assert [row["x"] for row in found.rows] == [Estimate(value=0.01, low=0.0, high=0.03), None, 3]


def test_a_quantity_that_may_be_negative_keeps_its_interval():
    kept = Estimate(value=0.01, low=-0.01, high=0.03)
    assert possible(table("kl", "nats/token", kept)).rows[0]["kl"] == kept


def test_a_row_that_names_its_quantity_is_cut_by_that():
    wide = Estimate(value=0.99, low=0.9, high=1.08)
    (row,) = possible(table("value", "", wide, quantity="seq_eff_sample_size", unit="fraction of responses")).rows
    assert row["value"].high == 1.0
    (row,) = possible(table("value", "", wide, quantity="reward", unit="reward")).rows
    assert row["value"] == wide


def test_an_estimate_without_an_interval_gets_none():
    assert possible(table("x", "probability", Estimate(value=0.0))).rows[0]["x"] == Estimate(value=0.0)


def test_ranges_are_of_quantities_that_there_are():
    known = diagnostics.QUANTITIES | strata.QUANTITIES | backend.QUANTITIES | STALENESS | QUANTITIES | REPLAYED
    assert set(RANGES) <= {*known, *(column.key for column in COLUMNS), "jaccard"}


def test_no_interval_of_an_audit_reaches_beyond_what_can_be():
    for found in tally(pad(made(count=12, spread=0.6))).tables():
        for row in found.rows:
            for column in found.columns:
                cell = row.get(column.key)
                if isinstance(cell, Estimate) and cell.low is not None:
                    low, high = span(row.get("quantity", column.key), row.get("unit", column.unit))
                    assert low <= cell.low <= cell.value <= cell.high <= high


@pytest.mark.parametrize("name", ["ratio_tail_2", "rollout_probs_diff_mean", "token_eff_sample_size"])
def test_a_unit_says_that_a_quantity_is_a_share(name):
    assert span(name, diagnostics.QUANTITIES[name].unit) == (0.0, 1.0)
