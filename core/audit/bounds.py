"""Intervals cut to what a quantity can be: a normal one around a share near 0 would reach below it."""

from __future__ import annotations

import math
from dataclasses import replace

from .table import Cell, Column, Estimate, Table

SHARES = ("probability", "fraction", "share")  # beginnings of units between 0 and 1
RANGES: dict[str, tuple[float, float]] = {
    "rollout_actor_probs_pearson_corr": (-1.0, 1.0),
    "route/jaccard": (0.0, 1.0),
    "jaccard": (0.0, 1.0),
    "token_mult_prob_error": (1.0, math.inf),
    "chi2_token": (-1.0, math.inf),
    "chi2_seq": (-1.0, math.inf),
} | dict.fromkeys(
    (
        "k3_kl",
        "k3_flipped",
        "k3_unflipped",
        "abs_log_ratio",
        "rho_mean",
        "mean",  # of a weight
        "training_ppl",
        "rollout_ppl",
        "ppl_ratio",
        "seq_log_ratio_std",
        "response_length",
        "update/entropy",
        "staleness_mean",
    ),
    (0.0, math.inf),
)
"""By name, where the unit does not say it."""


def possible(table: Table) -> Table:
    """The same table, no interval of which reaches beyond what its quantity can be."""
    heads = {column.key: column for column in table.columns}
    rows = tuple({key: _cut(cell, row, heads.get(key)) for key, cell in row.items()} for row in table.rows)
    return replace(table, rows=rows)


def span(name: str, unit: str) -> tuple[float, float]:
    """The least and the most that a quantity can be.

    Example:
        >>> span("ratio_tail_2", "probability"), span("kl", "nats/token")
        ((0.0, 1.0), (-inf, inf))
    """
    return RANGES.get(name, (0.0, 1.0) if unit.startswith(SHARES) else (-math.inf, math.inf))


def _cut(cell: Cell, row: dict[str, Cell], head: Column | None) -> Cell:
    """An estimate's interval within its range; the quantity is that of the row where it names one, else the column."""
    if not isinstance(cell, Estimate) or cell.low is None or cell.high is None or head is None:
        return cell
    low, high = span(str(row.get("quantity", head.key)), str(row.get("unit", head.unit)))
    return Estimate(value=cell.value, low=max(cell.low, low), high=min(cell.high, high))
