from dataclasses import replace
from functools import reduce

import pytest
import torch
from made import made

from firstorder.core.audit import routing_tables
from firstorder.core.audit.seen import Seen
from firstorder.core.formats.chunk import chunks, pad
from firstorder.core.quantities import means
from firstorder.core.routing import flips, jaccard, repeats
from firstorder.core.training.replay import arrived, run_rows


def faulty(samples):
    """Rows that are missing, rows that repeat, and tokens whose layers are all the same."""
    spoilt = []
    for i, sample in enumerate(samples):
        routes = sample.routes.clone()
        if i % 3 == 0:
            routes[2:4, 1] = -1
        if i % 3 == 1:
            routes[3] = routes[2]
        if i % 3 == 2:
            routes[1] = routes[1, :1]
        routes[-1] = -1
        spoilt.append(replace(sample, routes=routes))
    return spoilt


def measured(samples, positions=200):
    parts = [routing_tables.measured(Seen(chunk=chunk)) for chunk in chunks(samples, positions)]
    return reduce(routing_tables.merged, (each for each, _ in parts))


def tables(samples):
    return {table.name: table.rows for table in routing_tables.tables(measured(samples))}


def test_rows_are_counted_as_a_training_run_counts_them():
    chunk = pad(faulty(made(count=9, longest=20)))

    class Batch:
        tokens, routes, lengths = chunk.tokens, chunk.routes, chunk.lengths

    logged = means(arrived(Batch))
    _, moments = routing_tables.measured(Seen(chunk=chunk))
    mine = {name: float(above.sum() / below.sum()) for name, (above, below) in moments.items()}
    assert {name: mine[name] for name in logged} == pytest.approx({n: float(x) for n, x in logged.items()}, rel=1e-12)
    assert 0 < mine["replay/routes_missing"] < 1
    assert 0 < mine["replay/routes_repeated_layer_0"] < 1


def test_what_repeats_is_what_routing_says():
    chunk = pad(faulty(made(count=9, longest=20)))
    run = run_rows(chunk.lengths, chunk.routes.shape[1])
    before = torch.cat([torch.full_like(chunk.routes[:, :1], -1), chunk.routes[:, :-1]], 1)
    found = routing_tables.arrivals(chunk.routes, run)["repeated"]
    assert torch.equal(found, repeats(chunk.routes, before) & run[..., None])
    assert found.any()


def test_a_model_of_one_layer_has_no_layers_that_are_alike():
    samples = made(count=4, layers=1)
    chunk = pad(samples)
    run = run_rows(chunk.lengths, chunk.routes.shape[1])
    before = torch.cat([torch.full_like(chunk.routes[:, :1], -1), chunk.routes[:, :-1]], 1)
    found = routing_tables.arrivals(chunk.routes, run)["repeated"]
    assert torch.equal(found, repeats(chunk.routes, before) & run[..., None])


def test_the_use_of_experts_is_that_of_the_rows_that_are_run():
    samples = faulty(made(count=6))
    samples = [replace(s, routes=torch.cat([s.routes[:-1], s.routes[:1]])) for s in samples]  # a last row that is a row
    rows = tables(samples)["routes-by-layer"]
    for layer, row in enumerate(rows):
        ids = torch.cat([s.routes[:-1, layer].flatten() for s in samples]).long()
        share = torch.bincount(ids[ids >= 0], minlength=8) / (ids >= 0).sum()
        assert row["load_top"] == pytest.approx(float(share.max()))
        assert row["load_entropy"] == pytest.approx(-float(share.xlogy(share).sum()), rel=1e-6)
        assert row["experts_used"] == 8


def test_an_expert_that_takes_all_is_seen():
    samples = [replace(s, routes=torch.where(s.routes >= 0, s.routes % 2, -1)) for s in made(count=3)]
    assert all(row["experts_used"] == 2 for row in tables(samples)["routes-by-layer"])


def test_many_experts_and_layers_are_counted_without_overflow():
    routes = torch.randint(0, 600, (1, 5, 60, 2), dtype=torch.int16)
    run = torch.ones(1, 5, dtype=torch.bool)
    found = routing_tables.use(routes, run)
    assert found.shape[0] == 60
    for layer in range(60):
        assert found[layer].nonzero()[:, 0].tolist() == routes[0, :, layer].unique().tolist()


def test_ids_below_minus_one_are_no_expert():
    routes = torch.tensor([[[[-7, 2]], [[1, 2]]]], dtype=torch.int16)
    assert routing_tables.use(routes, torch.ones(1, 2, dtype=torch.bool)).tolist() == [[0, 1, 2]]


def test_flips_by_layer_are_those_of_the_rows_that_made_sampled_tokens():
    samples = made(count=6)
    chunk = pad(samples)
    a, b = chunk.routes[:, :-1][chunk.mask[:, 1:]], chunk.routes_old[:, :-1][chunk.mask[:, 1:]]
    for layer, row in enumerate(tables(samples)["routes-by-layer"]):
        assert row["flip_rate"].value == pytest.approx(float(flips(a[:, layer], b[:, layer]).double().mean()))
        assert row["jaccard"].value == pytest.approx(float(jaccard(a[:, layer], b[:, layer]).mean()), rel=1e-6)


def test_missing_rows_are_seen_where_they_are_missing():
    samples = []
    for sample in made(count=8):
        routes = sample.routes.clone()
        routes[:1] = -1
        samples.append(replace(sample, routes=routes))
    first, *others = tables(samples)["routes-by-position"]
    assert first["part"] == "1"
    assert first["missing"].value == 1.0
    assert first["flip_rate"] is None
    assert all(row["missing"].value == 0.0 for row in others)


def test_a_dump_with_the_trainers_routes_alone_has_their_use_and_logs_nothing_of_an_engine():
    chunk = pad([replace(s, routes=None) for s in made(count=3)])
    found, moments = routing_tables.measured(Seen(chunk=chunk))
    assert moments == {}
    by_layer, by_position = routing_tables.tables(found)
    assert {column.key for column in by_layer.columns} >= {"arrived", "load_entropy"}
    assert "flip_rate" not in {column.key for column in by_layer.columns}
    assert len(by_position.rows) > 1


def test_a_dump_without_routes_has_no_table_of_them():
    chunk = pad([replace(s, routes=None, routes_old=None) for s in made(count=3)])
    assert routing_tables.measured(Seen(chunk=chunk)) is None
